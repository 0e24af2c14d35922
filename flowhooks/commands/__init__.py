"""One module a command: ``add`` declares its arguments, ``run`` does it and returns the exit code.

All of them are imported to print ``--help``, so a module imports what its command needs inside ``run``.
"""
