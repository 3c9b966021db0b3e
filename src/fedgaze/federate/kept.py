"""What a client keeps at home from round to round."""

from pathlib import Path

from fedgaze.store import load_tensors, save_tensors
from fedgaze.train import State

__all__ = ["Kept"]


class Kept:
    """States by round, of which only the latest matter.

    A round may be repeated: the server was killed before it was whole, or did not merge it. So a
    client starts from its state of the last round that counted, which the server tells it, and not
    from whatever it wrote last.

    Args:
        folder: Where they lie.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def load(self, last: int) -> State:
        """The state after a round.

        Args:
            last: The last round of this client that counted, 0 for none.

        Returns:
            The state, the one before it if it was lost, or nothing at all.

        Raises:
            FedgazeError: The file is damaged.
        """
        known = [number for number in self._rounds() if number <= last]
        return load_tensors(self._file(max(known))) if known else {}

    def save(self, number: int, state: State, last: int) -> None:
        """Write the state after a round, atomically, and let go of what nobody will ask for.

        Args:
            number: The round.
            state: What to keep.
            last: The round that this one started from; it is kept for a repetition.
        """
        save_tensors(self._file(number), state)
        for other in self._rounds():
            if other not in (number, last):
                self._file(other).unlink(missing_ok=True)

    def _file(self, number: int) -> Path:
        return self._folder / f"round_{number}.safetensors"

    def _rounds(self) -> list[int]:
        names = (path.stem.partition("_")[2] for path in self._folder.glob("round_*.safetensors"))
        return [int(name) for name in names if name.isdigit()]
