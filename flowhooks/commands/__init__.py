"""Hold one module per command: ``add`` declares its arguments, ``run`` executes it and returns the exit code.

All of them are imported to print ``--help``, so a module imports what its command needs inside ``run``.
"""
