"""``python -m stl_deploy.hw_sim``."""

from stl_deploy.hw_sim.cli import main

main()
