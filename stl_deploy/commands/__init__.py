"""Command lines, thin: arguments in, tables and exit codes out."""
