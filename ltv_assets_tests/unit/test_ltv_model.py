"""The estimator: what it promises to a caller who knows nothing of assets and partitions."""

from __future__ import annotations

import json
import pickletools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks

from ltv_assets.core.columns import SCORED_COLUMNS
from ltv_assets.core.config import ForestConfig, StackerConfig
from ltv_assets.core.errors import DataError, ModelFileError
from ltv_assets.modeling import LTVModel
from ltv_assets.modeling.dataset import prepare_window
from ltv_assets.modeling.model_set import WindowModels
from ltv_assets.modeling.serialization import MANIFEST
from ltv_assets.modeling.stages import STAGE_NAMES, WindowContext, fit_window
from ltv_assets_tests.model_world import SMALL, SMALL_BOOSTER, fitted, world

pytestmark = pytest.mark.contest

FIVE_ROUNDS = SMALL_BOOSTER.model_copy(update={"max_rounds": 5})
FEW_ROUNDS = SMALL.model_copy(
    update={
        "linear": SMALL.linear.model_copy(update={"penalties": SMALL.linear.penalties[:1]}),
        **dict.fromkeys(("buyer_classifier", "whale_classifier", "revenue_head", "increments", "boosting"), FIVE_ROUNDS),
        "forest": ForestConfig(trees=2, num_leaves=4),
        "stacker": StackerConfig(booster=FIVE_ROUNDS),
    }
)
"""scikit-learn asks for conventions, not for figures."""

EXPECTED_FAILURES = {
    "check_fit_score_takes_y": "the second argument of fit is called revenue, because it is a table of horizons in USD",
}
"""scikit-learn's checks that cannot pass, with the reason."""


@pytest.mark.filterwarnings("ignore:all rows are in one period")
@parametrize_with_checks([LTVModel(models=FEW_ROUNDS)], expected_failed_checks=lambda _: EXPECTED_FAILURES)
def test_scikit_learn_conventions(estimator: LTVModel, check: object) -> None:
    check(estimator)  # type: ignore[operator]


class TestPredictions:
    def test_scored_columns_have_their_meaning(self) -> None:
        model, _, last = fitted()
        frame = model.predict_frame(last.X)
        assert tuple(frame.columns) == SCORED_COLUMNS
        assert np.isfinite(frame.drop(columns="predicted_zero").to_numpy()).all()
        assert frame["buyer_probability"].between(0, 1).all()
        assert (frame["buyer_probability"] <= model.models_.gating.cap).all()
        assert (frame["expected_revenue_d7"] <= model.models_.cap_usd).all()
        zero = frame["predicted_zero"]
        assert zero.dtype == bool
        assert (frame["iap_revenue_d7"][zero] == 0).all()
        assert (frame["iap_revenue_d7"][~zero] == frame["ltv_d7"][~zero]).all()
        assert (model.predict(last.X) == frame["ltv_d7"].to_numpy()).all()

    def test_index_of_the_input_is_kept(self) -> None:
        model, _, last = fitted()
        X = last.X.set_axis([f"i{i}" for i in range(len(last.X))])
        assert model.predict_frame(X).index.equals(X.index)

    @pytest.mark.parametrize("chunk_rows", [1, 7, 300])
    def test_chunks_change_nothing(self, chunk_rows: int) -> None:
        model, _, last = fitted()
        rows = last.X.iloc[:60]
        pd.testing.assert_frame_equal(model.predict_frame(rows, chunk_rows), model.predict_frame(rows), check_exact=True)

    def test_row_order_changes_nothing(self) -> None:
        model, _, last = fitted()
        order = np.random.default_rng(0).permutation(len(last.X))
        straight = model.predict_frame(last.X)
        pd.testing.assert_frame_equal(model.predict_frame(last.X.iloc[order]), straight.iloc[order], check_exact=True)

    def test_columns_are_matched_by_name(self) -> None:
        model, _, last = fitted()
        assert (model.predict(last.X[last.X.columns[::-1]]) == model.predict(last.X)).all()

    def test_missing_column_is_named(self) -> None:
        model, _, last = fitted()
        with pytest.raises(DataError, match="spend"):
            model.predict(last.X.drop(columns="spend"))

    def test_unseen_category_has_a_bucket_of_its_own(self) -> None:
        model, _, last = fitted()
        X = last.X.assign(country=pd.Categorical(["atlantis"] * len(last.X)))
        other = last.X.assign(country=pd.Categorical(["mu"] * len(last.X)))
        frame = model.predict_frame(X)
        assert np.isfinite(frame["ltv_d7"]).all()
        pd.testing.assert_frame_equal(frame, model.predict_frame(other), check_exact=True)

    def test_no_rows_give_no_predictions(self) -> None:
        model, _, last = fitted()
        frame = model.predict_frame(last.X.iloc[:0])
        assert len(frame) == 0
        assert tuple(frame.columns) == SCORED_COLUMNS

    def test_rows_of_gaps_only_are_scored(self) -> None:
        model, _, last = fitted()
        X = last.X.iloc[:3].copy()
        for column in X:
            X[column] = pd.Categorical([None] * 3) if column in ("country", "make") else np.float32(np.nan)
        assert np.isfinite(model.predict(X)).all()

    def test_ranking_and_calibration_are_close_to_the_law(self) -> None:
        model, train, last = fitted()
        frame = model.predict_frame(last.X)
        log_revenue = np.log1p(last.revenue["d7"].to_numpy())
        constant = np.log1p(train.revenue["d7"]).mean()

        def loss(score: np.ndarray | float) -> float:
            return float(np.mean((log_revenue - score) ** 2))

        share = (loss(constant) - loss(np.log1p(frame["ltv_d7"].to_numpy()))) / (loss(constant) - loss(last.oracle))
        assert share > 0.7
        assert frame["buyer_probability"].mean() == pytest.approx(last.probability.mean(), rel=0.2)


class TestDeterminism:
    def test_same_rows_and_seed_give_the_same_bytes(self) -> None:
        model, train, _ = fitted()
        again = LTVModel(models=SMALL, random_state=0).fit(train.X, train.revenue, period=train.period, row_id=train.row_id)
        assert again.models_.to_files() == model.models_.to_files()

    def test_another_seed_gives_another_model(self) -> None:
        model, train, _ = fitted()
        other = LTVModel(models=SMALL, random_state=1).fit(train.X, train.revenue, period=train.period, row_id=train.row_id)
        assert other.models_.to_files() != model.models_.to_files()

    def test_estimator_and_stages_are_one(self) -> None:
        model, train, last = fitted()
        window = prepare_window(train.X, train.revenue, train.period, train.row_id)
        models = fit_window(WindowContext(window, SMALL, model._settings()[1]))
        pd.testing.assert_frame_equal(models.score(last.X), model.predict_frame(last.X), check_exact=True)


class TestInputs:
    @pytest.mark.parametrize("bad", [np.nan, np.inf, -0.01])
    def test_impossible_revenue_is_refused(self, bad: float) -> None:
        data = world(300, 3)
        revenue = data.revenue["d7"].to_numpy().copy()
        revenue[5] = bad
        with pytest.raises(DataError, match="of 300 labels"):
            LTVModel(models=SMALL).fit(data.X, revenue, period=data.period)

    def test_few_payers_still_give_a_model(self) -> None:
        data = world(900, 3)
        revenue = np.zeros(900)
        payers = np.arange(0, 900, 100)
        revenue[payers] = 5.0
        model = LTVModel(models=SMALL).fit(data.X, revenue, period=data.period)
        frame = model.predict_frame(data.X)
        assert np.isfinite(frame.drop(columns="predicted_zero").to_numpy()).all()
        assert frame["buyer_probability"].mean() == pytest.approx(0.01, abs=0.02)

    def test_payers_in_one_period_only_still_give_a_model(self) -> None:
        data = world(900, 3)
        revenue = np.where(data.period == 1, data.revenue["d7"], 0.0)
        assert np.isfinite(LTVModel(models=SMALL).fit(data.X, revenue, period=data.period).predict(data.X)).all()

    def test_everybody_pays(self) -> None:
        data = world(900, 3)
        model = LTVModel(models=SMALL).fit(data.X, data.revenue["d7"] + 1.0, period=data.period)
        frame = model.predict_frame(data.X)
        assert frame["buyer_probability"].mean() > 0.95
        assert not frame["predicted_zero"].any()

    def test_two_periods_are_enough(self) -> None:
        data = world(900, 2)
        assert np.isfinite(LTVModel(models=SMALL).fit(data.X, data.revenue, period=data.period).predict(data.X)).all()

    def test_arrays_and_text_columns_are_accepted(self) -> None:
        data = world(900, 3)
        numbers = data.X[["spend", "sessions", "noise"]].to_numpy()
        assert np.isfinite(LTVModel(models=SMALL).fit(numbers, data.revenue["d7"].to_numpy(), period=data.period).predict(numbers)).all()
        text = data.X.assign(country=data.X["country"].astype("str"))
        assert np.isfinite(LTVModel(models=SMALL).fit(text, data.revenue, period=data.period).predict(text)).all()

    def test_clone_is_unfitted_and_equal(self) -> None:
        copy = clone(fitted()[0])
        assert not hasattr(copy, "models_")
        assert copy.get_params() == fitted()[0].get_params()


class TestFiles:
    @pytest.fixture()
    def folder(self, tmp_path: Path) -> Path:
        fitted()[0].save(tmp_path / "model")
        return tmp_path / "model"

    def test_loaded_model_predicts_the_same_bits(self, folder: Path) -> None:
        model, _, last = fitted()
        pd.testing.assert_frame_equal(LTVModel.load(folder).predict_frame(last.X), model.predict_frame(last.X), check_exact=True)

    def test_saved_twice_is_the_same_bytes(self, folder: Path, tmp_path: Path) -> None:
        LTVModel.load(folder).save(tmp_path / "again")
        files = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
        assert files == sorted(p.relative_to(tmp_path / "again") for p in (tmp_path / "again").rglob("*") if p.is_file())
        assert all((folder / f).read_bytes() == (tmp_path / "again" / f).read_bytes() for f in files)

    def test_only_text_and_json_and_no_pickle(self, folder: Path) -> None:
        files = [p for p in folder.rglob("*") if p.is_file()]
        assert {p.suffix for p in files} == {".txt", ".json"}
        assert {p.parent.name for p in files} == {"model", *STAGE_NAMES}
        for path in files:
            with pytest.raises(ValueError):
                list(pickletools.genops(path.read_bytes()))

    def test_existing_folder_is_not_overwritten(self, folder: Path) -> None:
        before = (folder / MANIFEST).read_bytes()
        with pytest.raises(FileExistsError):
            fitted()[0].save(folder)
        assert (folder / MANIFEST).read_bytes() == before

    @pytest.mark.parametrize("damage", ["truncate", "flip", "remove", "empty"])
    @pytest.mark.parametrize("name", ["buyer_classifier/buyer_booster.txt", "stacker/score_gate.json", "buyer_gating/buyer_threshold.json"])
    def test_damaged_file_is_named_before_lightgbm_sees_it(self, folder: Path, name: str, damage: str) -> None:
        path = folder / name
        content = path.read_bytes()
        if damage == "remove":
            path.unlink()
        else:
            flipped = content[:50] + bytes([content[50] ^ 1]) + content[51:]
            path.write_bytes({"truncate": content[: len(content) // 2], "flip": flipped, "empty": b""}[damage])
        with pytest.raises(ModelFileError, match=Path(name).name):
            LTVModel.load(folder)

    def test_truncated_text_without_manifest_is_refused_too(self) -> None:
        """In a process of its own: LightGBM would abort it."""
        files = fitted()[0].models_.to_files()
        name = "revenue_regressor/reference.txt"
        with pytest.raises(ModelFileError, match=r"reference\.txt: truncated or altered"):
            WindowModels.from_files({**files, name: files[name][:-200]})

    def test_path_out_of_the_folder_is_refused(self, folder: Path) -> None:
        manifest = json.loads((folder / MANIFEST).read_text())
        manifest["files"]["../outside.json"] = {"bytes": 1, "sha256": "0" * 64}
        (folder / MANIFEST).write_text(json.dumps(manifest))
        with pytest.raises(ModelFileError, match="leaves the model's folder"):
            LTVModel.load(folder)

    def test_folder_without_manifest_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ModelFileError, match="no manifest"):
            LTVModel.load(tmp_path)

    @pytest.mark.parametrize("key", ["probability_cap", "schema_version", "whale"])
    def test_edited_gating_file_is_refused(self, key: str) -> None:
        files = fitted()[0].models_.to_files()
        gating = json.loads(files["buyer_gating/buyer_gating.json"])
        gating[key] = {"probability_cap": 1.0, "schema_version": 99, "whale": {**gating["whale"], "revenue_usd": 1.0}}[key]
        with pytest.raises(ModelFileError, match="buyer_gating"):
            WindowModels.from_files({**files, "buyer_gating/buyer_gating.json": json.dumps(gating).encode()})

    @pytest.mark.parametrize("stage", STAGE_NAMES[:3])
    def test_stage_of_another_model_is_refused(self, stage: str) -> None:
        files = fitted()[0].models_.to_files()
        foreign = fitted(1)[0].models_.to_files()
        mixed = {name: (foreign if name.startswith(f"{stage}/") else files)[name] for name in files}
        with pytest.raises(ModelFileError, match=r"another|belong to different models"):
            WindowModels.from_files(mixed)

    @pytest.mark.parametrize(("stage", "key"), [("buyer_classifier", "growth"), ("revenue_regressor", "log_range")])
    def test_model_of_another_version_is_refused_with_a_remedy(self, stage: str, key: str) -> None:
        files = fitted()[0].models_.to_files()
        file = f"{stage}/{stage}.json"
        state = json.loads(files[file])
        del state[key]
        with pytest.raises(ModelFileError, match=rf"no '{key}'.*made by another version: make the window again by `ltv run`"):
            WindowModels.from_files({**files, file: json.dumps(state).encode()})

    def test_loads_in_a_new_process_without_the_training_rows(self, folder: Path) -> None:
        code = f"from ltv_assets.modeling import LTVModel; m = LTVModel.load({str(folder)!r}); print(m.n_features_in_)"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == str(fitted()[1].X.shape[1])


def test_refitted_model_knows_the_new_rows() -> None:
    model, _, last = fitted()
    served = model.refit(last.X, last.revenue, last.period, last.row_id)
    assert served.models_.classifier.rounds == model.models_.classifier.rounds
    assert (served.predict(last.X) != model.predict(last.X)).any()


def test_loaded_model_cannot_be_refitted(tmp_path: Path) -> None:
    model, _, last = fitted()
    model.save(tmp_path / "m")
    with pytest.raises(ModelFileError, match="training rows"):
        LTVModel.load(tmp_path / "m").refit(last.X, last.revenue, last.period)


FEW = [
    ([0, 1, 0, 2, 0], None),
    ([0, 1, 0, 2, 0], [0, 0, 0, 1, 1]),
    ([1.0], None),
    ([1.0, 0.0], [0, 1]),
    ([1.0, 0.0, 2.0], [0, 1, 2]),
    ([0, 1, 0, 2, 0, 1], None),
    ([0, 1, 0, 2, 0, 1, 0, 0], None),
    ([0, 1] * 5, [0] * 5 + [1] * 5),
    ([0, 1] * 6, [0] * 10 + [1, 2]),
    ([5.0] + [0.0] * 59, [i // 20 for i in range(60)]),
    ([0.0] * 59 + [5.0], [i // 20 for i in range(60)]),
    ([1.0] * 50, None),
    ([0.0, 0.0, 1e-300] * 20, [i // 20 for i in range(60)]),
    ([0.0, 0.0, 1e300] * 20, [i // 20 for i in range(60)]),
    ([0.0] * 50, None),
    ([0.0, 1.0, np.nan, 2.0, 0.0], None),
    (["dear"] * 10, None),
]


@pytest.mark.parametrize("constant", [False, True], ids=["columns that vary", "constant columns"])
@pytest.mark.parametrize(("revenue", "period"), FEW, ids=range(len(FEW)))
@pytest.mark.filterwarnings("ignore:all rows are in one period")
def test_handful_of_rows_gives_a_finite_model_or_a_message(revenue: list[float], period: list[int] | None, constant: bool) -> None:
    rng, n = np.random.default_rng(0), len(revenue)
    X = pd.DataFrame({"a": np.ones(n) if constant else rng.normal(size=n), "c": pd.Categorical(rng.choice(["us", "de"], n))})
    try:
        model = LTVModel(models=SMALL).fit(X, np.array(revenue), period=period)
    except DataError as error:
        assert any(word in str(error) for word in ("rows", "labels", "expected numbers in USD"))
    else:
        assert np.isfinite(model.predict_frame(X).select_dtypes("number")).all(axis=None)


def test_column_of_lists_is_refused_by_its_name() -> None:
    with pytest.raises(DataError, match="column 'a': expected numbers, text or categories, found lists or objects"):
        LTVModel(models=SMALL).fit(pd.DataFrame({"a": [[1, 2]] * 60}), [0, 0, 3] * 20, period=[i // 20 for i in range(60)])
