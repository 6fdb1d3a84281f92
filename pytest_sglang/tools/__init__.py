"""Command line tools, one a module: ``add(tools)`` declares its sub-command, ``run(arguments)`` does it and gives the exit code."""
