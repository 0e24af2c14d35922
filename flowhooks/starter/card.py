"""Choose the options with which a first run fits a card, by counting its memory."""

from __future__ import annotations

from flowhooks.config import Run
from flowhooks.data.records import Audit
from flowhooks.errors import ConfigError, Problem
from flowhooks.memory.plan import NotCounted, plan_memory
from flowhooks.memory.report import fitting
from flowhooks.starter.draft import Fitted


def fit_card(run: Run, audited: Audit, card: int) -> Fitted:
    """Return the cheapest change under which a run fits a card of so many bytes.

    Raises:
        ConfigError: nothing that was tried fits.
    """
    try:
        planned = plan_memory(run, audited)
        fit = fitting(planned, planned.needs(), card)
    except NotCounted as error:
        return Fitted(sentence=f"memory is not counted: {error}")
    if fit.changes is None:
        raise ConfigError(Problem(f"the run {fit.sentence}; name a larger card or a smaller model", "--gpu"))
    height, width, _ = planned.size
    size = None if fit.scale == 1 else (int(height * fit.scale), int(width * fit.scale))
    return Fitted(changes=fit.changes, size=size, sentence=fit.sentence)
