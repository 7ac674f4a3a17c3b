"""Colours and labels that all pictures share."""

from typing import Final

from matplotlib.axes import Axes

ACTUAL_COLOUR: Final = "#1b5e7a"
"""Blue: what was metered, and the first of several things beside one another."""
EXPECTED_COLOUR: Final = "#e07b39"
"""Orange: what was expected, and what is to be looked at."""
THIRD_COLOUR: Final = "#7fb069"
MUTED_COLOUR: Final = "#8a8f94"
"""Grey that is still read: a line beside the one that matters."""
BACKGROUND_COLOUR: Final = "#c3c7ca"
"""Grey of what is only there to compare with."""
TEXT_COLOUR: Final = "#33383c"
TITLE_SIZE: Final = 9
LABEL_SIZE: Final = 8


def label_panel(
    panel: Axes, title: str, x_label: str = "", y_label: str = "", title_size: int = TITLE_SIZE
) -> None:
    """Give a panel its title and labels, and take away the frame above and to the right."""
    panel.set_title(title, fontsize=title_size, loc="left")
    panel.set_xlabel(x_label, fontsize=LABEL_SIZE)
    panel.set_ylabel(y_label, fontsize=LABEL_SIZE)
    panel.tick_params(labelsize=LABEL_SIZE)
    panel.spines[["top", "right"]].set_visible(False)


def replace_underscores(name: str) -> str:
    """Return a name of code as words."""
    return name.replace("_", " ")
