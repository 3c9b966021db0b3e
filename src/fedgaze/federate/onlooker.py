"""The server's own look at models, on a probe set that no client has."""

from functools import cached_property
from pathlib import Path
from typing import Any

from fedgaze.data import mark_mask, stamp
from fedgaze.federate.exchange import fingerprint
from fedgaze.federate.look import Look, Probe, look, make_probe, nested, profile, write_look
from fedgaze.federate.setup import Setup, reason
from fedgaze.measure import causal_drop, mass_on
from fedgaze.store import no_room
from fedgaze.train import LearnerProtocol, State

__all__ = ["Onlooker"]


class Onlooker:
    """Explains each update of a round before the merge, and the merged model after it.

    Args:
        setup: The task and its images.
        home: The run's folder.
        learner: Is set to each model that is looked at.
    """

    def __init__(self, setup: Setup, home: Path, learner: LearnerProtocol) -> None:
        self.setup = setup
        self.learner = learner
        self._home = home
        self._received: State = {}
        self._received_look: Look | None = None
        self.number = 0

    @property
    def active(self) -> bool:
        """Whether the task wants the server to look."""
        spec = self.setup.task.xai
        return spec.enabled and spec.run_location in ("server", "both")

    @cached_property
    def probe(self) -> Probe:
        """The probe set, on the run's device."""
        images, chosen = self.setup.server_probe
        return make_probe(self.setup, images, chosen)

    def open_round(self, number: int, received: State) -> None:
        """Begin a round.

        Args:
            number: Which.
            received: The weights that go out.
        """
        self.number, self._received, self._received_look = number, received, None

    @property
    def received(self) -> Look:
        """What the weights that went out show; looked at once a round. The learner is set to them.

        Whoever needs the learner for another model sets it afterwards.
        """
        if self._received_look is None:
            self.learner.set_parameters(self._received)
            self._received_look = look(self.learner, self.probe)
        return self._received_look

    def folder(self, name: str) -> Path:
        """Where pictures of this round lie, below the run's folder."""
        return self.setup.task.xai.save_dir / f"round_{self.number}" / name

    def look_at(self, state: State, name: str) -> tuple[dict[str, Any], Look | None]:
        """Explain a model on the probe set, and write the pictures.

        Args:
            state: The model's weights; the learner is left with them.
            name: What it is called in the files' names.

        Returns:
            What the record says of it, and what was seen; None where it could not be looked at.
        """
        try:
            return self._try(state, name)
        except Exception as error:
            if no_room(error):  # it would be missing for ever; a resumed run has it
                raise
            return {"failed": reason(error)}, None

    def _try(self, state: State, name: str) -> tuple[dict[str, Any], Look]:
        received = self.received.explanation
        self.learner.set_parameters(state)
        seen = look(self.learner, self.probe, received)
        looks = {"trained": seen}
        if self.setup.task.dataset.plant:
            marked = look(self.learner, self.probe.with_images(stamp))
            looks["marked"] = marked
            seen.measures["mark_drop"] = causal_drop(
                marked.explanation.logits, seen.explanation.logits, self.probe.labels
            )
            seen.measures["mark_mass"] = mass_on(
                marked.explanation.heatmaps, mark_mask(self.probe.images)
            )
        told = nested(profile(seen))
        if not self.setup.task.xai.pictures:
            return told | {"shared": "profile"}, seen
        folder = self.folder(f"server/{name}")
        write_look(
            self._home / folder,
            looks,
            self.setup.dataset.classes,
            round=self.number,
            weights_sha256={"trained": fingerprint(state)},
        )
        return told | {"shared": "overlays", "folder": str(folder)}, seen
