"""What watches a training: a quiet progress bar."""

from __future__ import annotations

from contextlib import ExitStack

import lightning.pytorch as L

from dipole_vla.progress import bar


class StepProgress(L.Callback):
    """One bar over the steps of the run, with the loss; starts where a resumed run starts."""

    def __init__(self, what: str, refresh: int = 10):
        self.what, self.refresh = what, refresh
        self._open = ExitStack()
        self._shown = 0

    def on_train_start(self, trainer, module) -> None:
        if trainer.is_global_zero:
            self._bar = self._open.enter_context(bar(self.what, max(trainer.max_steps, 0)))
            self._shown = 0
            self._show(trainer)

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        if trainer.is_global_zero and trainer.global_step - self._shown >= self.refresh:
            self._show(trainer)

    def on_train_end(self, trainer, module) -> None:
        if trainer.is_global_zero:
            self._show(trainer)
        self._open.close()

    def on_exception(self, trainer, module, exception) -> None:
        self._open.close()

    def _show(self, trainer) -> None:
        loss = trainer.callback_metrics.get("loss")
        note = "" if loss is None else f"loss {float(loss):.4f}"
        self._bar.advance(trainer.global_step - self._shown, note)
        self._shown = trainer.global_step
