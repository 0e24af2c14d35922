"""Everything about a run that can be known before weights load: ``check`` prints it, ``train`` refuses by it.

It looks at the disk (the output folder that is there already included), the data, the model's files and the machine;
what the run file alone shows is refused by ``config``. Free of torch; what cannot be told without it imports it
there, and only for runs that ask for it.
"""

from __future__ import annotations

from flowhooks.checks.examine import Examined, examine

__all__ = ["Examined", "examine"]
