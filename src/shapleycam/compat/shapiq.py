"""Games for shapiq: `pip install "shapleycam[games]"`."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..network_game import Game


def to_shapiq(game: Game) -> Any:
    """The game as a `shapiq.Game`, for any of its approximators and indices; worths are those less the empty coalition's.

    Examples
    --------
    >>> import shapiq, torch, shapleycam as sc
    >>> from shapleycam.compat.shapiq import to_shapiq
    >>> model = sc.load_model("resnet18", weights="random")
    >>> played = to_shapiq(sc.game(model, torch.rand(3, 64, 64), players=2))
    >>> shapiq.ExactComputer(played, n_players=4)("k-SII", order=2).index
    'k-SII'
    """
    import shapiq

    class Adapted(shapiq.Game):
        """A classifier's game; value_function is `Game.worth`."""

        def value_function(self, coalitions: NDArray[np.bool_]) -> NDArray[np.float64]:
            given = torch.from_numpy(np.asarray(coalitions, dtype=bool))
            worths: NDArray[np.float64] = game.worth(given).to(torch.float64).cpu().numpy()
            return worths

    return Adapted(n_players=game.players, normalize=True, normalization_value=float(game.empty))
