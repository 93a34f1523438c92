"""Progress bar of commands and jobs."""

from typing import Any

from tqdm import tqdm


class ProgressBar(tqdm):  # type: ignore[type-arg]
    """A tqdm bar that shows no placeholders such as "?step/s" before the first step."""

    @property
    def format_dict(self) -> dict[str, Any]:
        """Values and format of the bar; see tqdm."""
        values = dict(super().format_dict)
        if values["n"] <= values["initial"]:
            values["bar_format"] = (
                "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]"
                if values["total"]
                else f"{values['prefix'] or ''}starting [{{elapsed}}{{postfix}}]"
            )
        return values
