"""Everything about a run that can be known before weights load: ``check`` prints it, ``train`` refuses by it.

Free of torch; what cannot be told without it imports it there, and only for runs that ask for it.
"""

from __future__ import annotations

from flowhooks.checks.examine import Examined, examine

__all__ = ["Examined", "examine"]
