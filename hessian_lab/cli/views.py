"""What is told of views that were held out, of a radiance field or of many small ones."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hessian_lab.names import plural

if TYPE_CHECKING:
    from hessian_lab.fields.volume import Volume
    from hessian_lab.measures.radiance import Seen


def told_views(
    directory: Path, model: "Volume", seen: "Seen", title: str
) -> tuple[dict[str, Any], list[str]]:
    """Draw the views and a turn around the scene; return what is told of them, twice."""
    from hessian_lab.measures.radiance import TABLE, write_turn
    from hessian_lab.plots.radiance import plot_views
    from hessian_lab.plots.style import save

    means = seen.table.drop(columns="view").mean()
    figure = plot_views(
        seen.scene.pictures[seen.views], seen.pictures, seen.depths, seen.table, title=title
    )
    pictures = [str(path) for path in save(figure, directory / "figures" / "views")]
    turn = str(write_turn(directory, model, seen.scene))
    table = str(directory / TABLE)
    numbers = {name: float(mean) if math.isfinite(mean) else None for name, mean in means.items()}
    more: dict[str, Any] = {"held_out": {"views": len(seen.views)} | numbers}
    more |= {"views": table, "turntable": turn, "pictures": pictures}
    told = (
        f"{plural(len(seen.views), 'view')} held out: PSNR {means['psnr']:.2f} dB, "
        f"SSIM {means['ssim']:.4f}"
    )
    return more, [told, table, turn, *pictures]
