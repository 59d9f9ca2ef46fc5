"""Pictures: the same bytes every time, small, and never an exception for data that is empty, constant or broken."""

from __future__ import annotations

import base64
import io
import subprocess
import sys
from collections.abc import Callable

import matplotlib
import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from ltv_assets import plots as pictures
from ltv_assets.plots import canvas

NOTHING: list[float] = []


def holdout(n: int = 2000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    p = rng.beta(0.3, 9, n)
    return np.where(rng.random(n) < p, rng.lognormal(2, 1, n), 0.0), p, np.expm1(2 * p)


def every_picture(revenue: np.ndarray, p: np.ndarray, ltv: np.ndarray) -> dict[str, Callable[[], bytes]]:
    """All kinds of picture of some rows; keys are the function names."""
    revenue, p, ltv = (np.asarray(v, dtype=float) for v in (revenue, p, ltv))
    n = revenue.size
    edges = np.linspace(0, 8, 9)
    counts = np.concatenate([[np.sum(revenue == 0)], np.histogram(np.log1p(revenue[np.isfinite(revenue) & (revenue > 0)]), edges)[0]])
    names = [f"iap_revenue_usd_category_bottom_taxonomy__{i}" for i in range(n)][:40]
    return {
        "reliability_curve": lambda: pictures.reliability_curve(revenue > 0, p),
        "gain_curves": lambda: pictures.gain_curves(revenue, {"model": ltv, "reference": p}),
        "revenue_against_spend": lambda: pictures.revenue_against_spend(revenue, {"model": ltv}, price=p + 1),
        "decile_chart": lambda: pictures.decile_chart(revenue, ltv, p),
        "zero_rate_by": lambda: pictures.zero_rate_by(np.arange(n) % 24, revenue, ltv < 0.1),
        "residuals_by_revenue": lambda: pictures.residuals_by_revenue(revenue, ltv),
        "score_distribution": lambda: pictures.score_distribution(ltv, revenue, cutoff_usd=0.1),
        "sampling_histogram": lambda: pictures.sampling_histogram(edges, counts, counts * 2, within="30 days"),
        "feature_importances": lambda: pictures.feature_importances(names, p[:40], p[:40]),
        "training_curves": lambda: pictures.training_curves({"train": p[:30], "valid": ltv[:30]}, best_iteration=3),
        "rows_by_hour": lambda: pictures.rows_by_hour({"good": np.resize(np.append(p, 0), 24)}, missing=[3]),
        "shap_summary": lambda: pictures.shap_summary(names[:5], np.outer(p, np.arange(5)) - 0.1, np.outer(ltv, np.ones(5))[:, :5]),
        "missing_shares": lambda: pictures.missing_shares(dict(zip(names, p[:40], strict=True))),
        "psi_bars": lambda: pictures.psi_bars(names, p[:40]),
        "forecast_intervals": lambda: pictures.forecast_intervals(
            names[:20], p[:20], 0.8 * p[:20], 1.3 * p[:20], observed=ltv[:20], title="Forecast", within="30 days"
        ),
        "rmsle_bars": lambda: pictures.rmsle_bars({name: (v, v - 0.01, v + 0.01) for name, v in zip(names, p[:5], strict=False)}),
    }


class WithoutPixels(FigureCanvasAgg):
    """Places and measures everything, as drawing does, and leaves the paper white."""

    def draw(self) -> None:
        self.figure.draw_without_rendering()
        self.get_renderer().clear()


def is_picture(png: bytes) -> bool:
    with Image.open(io.BytesIO(png)) as image:
        image.verify()
        return png.startswith(b"\x89PNG") and 400 <= image.width <= 1000 and 150 <= image.height <= 1200


def test_every_picture_is_covered_here() -> None:
    assert set(every_picture(*holdout(50))) == set(pictures.__all__) - {"no_data", "to_markdown_image"}


@pytest.mark.parametrize("name", sorted(every_picture(*holdout(50))))
def test_same_arrays_same_bytes_and_small(name: str) -> None:
    picture = every_picture(*holdout())[name]
    first = picture()
    assert is_picture(first) and len(first) < 60_000
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "savefig.dpi": 10}):  # somebody's own settings
        assert picture() == first


@pytest.mark.parametrize("name", sorted(every_picture(*holdout(50))))
@pytest.mark.parametrize("case", ["empty", "one payer", "one row", "all zero", "all NaN", "some NaN", "constant score"])
@pytest.mark.filterwarnings("error")
def test_odd_data_gives_a_picture_not_an_exception(name: str, case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canvas, "LAYOUT", None)  # faster; what is drawn is the same
    monkeypatch.setattr(canvas, "FigureCanvasAgg", WithoutPixels)
    revenue, p, ltv = holdout(300)
    if case == "empty":
        revenue, p, ltv = revenue[:0], p[:0], ltv[:0]
    elif case == "one payer":
        revenue = np.where(np.arange(300) == 7, 5.0, 0.0)
    elif case == "one row":
        revenue, p, ltv = revenue[:1], p[:1], ltv[:1]
    elif case == "all zero":
        revenue, p, ltv = np.zeros(300), np.zeros(300), np.zeros(300)
    elif case == "all NaN":
        revenue, p, ltv = (np.full(300, np.nan),) * 3
    elif case == "some NaN":
        p, ltv = np.where(np.arange(300) % 3, p, np.nan), np.where(np.arange(300) % 5, ltv, np.inf)
    else:
        p, ltv = np.full(300, 0.03), np.full(300, 0.2)
    assert is_picture(every_picture(revenue, p, ltv)[name]())


def test_nothing_to_draw_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str] = []
    original = Axes.text
    monkeypatch.setattr(Axes, "text", lambda self, x, y, s, **kw: (texts.append(s), original(self, x, y, s, **kw))[1])
    for draw in (
        lambda: pictures.gain_curves(np.zeros(9), {"model": np.arange(9)}),
        lambda: pictures.reliability_curve(NOTHING, NOTHING),
        lambda: pictures.feature_importances(["a"], [0.0]),
        lambda: pictures.training_curves({"train": [np.nan]}),
        lambda: pictures.zero_rate_by([None, None], [0.0, 1.0], [True, True]),
        lambda: pictures.rmsle_bars({"a": float("nan")}),
        lambda: pictures.psi_bars([], NOTHING),
        lambda: pictures.missing_shares({}),
        lambda: pictures.sampling_histogram(NOTHING, NOTHING, NOTHING, within="one day"),
    ):
        texts.clear()
        draw()
        assert texts[0] == "no data" and len(texts[1]) > 8


def test_names_are_drawn_as_they_are() -> None:
    names = ["$x^{2", "50 % $ of $ all", "ünïcödé", "emoji 🎮", "a" * 200, ""]
    assert is_picture(pictures.feature_importances(names, np.arange(1.0, 7.0)))
    assert canvas.shorten("a" * 30 + "_tail", 20).endswith("_tail") and len(canvas.shorten("a" * 30, 20)) == 20
    assert canvas.shorten("short") == "short"


def test_arrays_that_do_not_fit_together_are_refused() -> None:
    with pytest.raises(ValueError, match="9 counts"):
        pictures.sampling_histogram(np.arange(9.0), np.ones(8), np.ones(9), within="one day")
    with pytest.raises(ValueError, match="per name"):
        pictures.feature_importances(["a"], [1.0, 2.0])
    with pytest.raises(ValueError, match="per name"):
        pictures.psi_bars(["a"], [1.0, 2.0])


def test_too_many_groups_are_not_squeezed_into_one_picture() -> None:
    n = 500
    assert is_picture(pictures.zero_rate_by(np.arange(n), np.zeros(n), np.ones(n, dtype=bool)))
    hours = [f"2025-10-{d:02d}-{h:02d}-00" for d in range(1, 7) for h in range(24)]
    assert is_picture(pictures.zero_rate_by(hours, np.arange(144) % 2, np.ones(144, dtype=bool), by="hour"))


def test_markdown_image_holds_the_bytes() -> None:
    png = pictures.no_data("Nothing", "not yet")
    text = pictures.to_markdown_image(png, "a [b]\nc")
    head, _, tail = text.partition("(data:image/png;base64,")
    assert head == "![a (b) c]" and base64.b64decode(tail.rstrip(")")) == png


def test_amounts_are_written_as_people_do() -> None:
    assert [canvas.usd(v) for v in (0, 0.05, 1.5, 20, 3000, 1_200_000)] == ["$0", "$0.05", "$1.5", "$20", "$3k", "$1.2M"]


def test_pyplot_is_never_imported() -> None:
    code = "import sys, ltv_assets.plots as p; p.no_data('a', 'b'); sys.exit('matplotlib.pyplot' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
