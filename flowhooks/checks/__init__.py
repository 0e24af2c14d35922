"""Check everything about a run that can be known before weights load: ``check`` prints the result, ``train`` refuses by
it.

The checks cover the disk (an existing output folder included), the data, the model's files and the machine;
``config`` refuses what the run file alone shows. Free of torch; a check that needs torch imports it
in its function, and only for runs that need the check.
"""

from __future__ import annotations

from flowhooks.checks.examine import Examined, examine

__all__ = ["Examined", "examine"]
