"""``python -m stl_deploy.hw_sim``."""

from stl_deploy.commands.hw_sim import main

main()
