"""What every asset does around its one call into the core: verify inputs, publish atomically, describe what it made."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dagster as dg

from ltv_assets.core.asset_specs import CODE_VERSIONS, SPECS, OutputColumn, Upstream
from ltv_assets.core.config import Config
from ltv_assets.core.errors import LtvError, NoSpaceError, TransientError, explained
from ltv_assets.core.partition_key import PartitionKey
from ltv_assets.defs.partitions import holdout_mapping, training_days_mapping
from ltv_assets.defs.resources import CatalogueResource, ProjectResource, TrackingResource
from ltv_assets.state.project import Project
from ltv_assets.storage.files import sweep_staging
from ltv_assets.storage.manifest import Manifest
from ltv_assets.tracking.client import Tracker

OWNERS = ["team:ltv"]
MAX_RETRIES = 2
RETRY_SECONDS = 5.0

SHOWN_GROUPS = 20
"""Groups of which most is expected, in the pictures and tables of forecasts."""

Fill = Callable[[Path], Mapping[str, int | None]]


@contextmanager
def readable_failures() -> Iterator[None]:
    """Turn the project's errors into Dagster failures with one message; only transient ones are retried, and not for ever."""
    try:
        yield
    except NoSpaceError as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    except TransientError as error:
        raise dg.RetryRequested(max_retries=MAX_RETRIES, seconds_to_wait=RETRY_SECONDS) from error
    except LtvError as error:
        raise dg.Failure(str(error), allow_retries=False) from error
    except Exception as error:
        known = explained(error)
        if known is None:
            raise
        raise dg.Failure(str(known), allow_retries=False) from error


@dataclass
class Publication:
    """One asset partition being made: the opened project, its verified inputs, whom to tell of it, and a stopwatch."""

    project: Project
    catalogue: CatalogueResource
    tracker: Tracker
    asset: str
    key: PartitionKey
    run_id: str
    inputs: dict[str, str]
    started: float

    @property
    def log(self) -> logging.Logger:
        """The log of this run."""
        return dg.get_dagster_logger()

    def publish(self, fill: Fill, facts: Mapping[str, Any] | Callable[[], Mapping[str, Any]] | None = None) -> Manifest:
        """Write the partition and show it in the catalogue; a locked catalogue is left to the next sync.

        Raises TransientError if an input was replaced while it was read: what was made then belongs to neither of the two.
        """

        def filled(folder: Path) -> Mapping[str, int | None]:
            try:
                listed = fill(folder)
            except Exception:
                # Whatever it stumbled over may be what the other run put in the place of its input: that is said instead, and tried again.
                self._refuse_replaced_inputs()
                raise
            self._refuse_replaced_inputs()
            return listed

        manifest = self.project.warehouse.write(
            self.asset,
            self.key,
            filled,
            code_version=CODE_VERSIONS[self.asset],
            config=self.project.lineage().config_hash(self.asset, self.key),
            inputs=self.inputs,
            facts=facts,
        )
        try:
            self.catalogue.sync(self.project)
        except TransientError as error:
            dg.get_dagster_logger().warning(str(error))
        return manifest

    def _refuse_replaced_inputs(self) -> None:
        now = self.project.lineage().inputs(self.asset, self.key)
        replaced = sorted(name for name in now.keys() | self.inputs.keys() if now.get(name) != self.inputs.get(name))
        if replaced:
            raise TransientError(
                f"{self.asset} {self.key}: its input {replaced[0]} was replaced by another run while it was read; run it again"
            )

    @property
    def seconds(self) -> float:
        """Since the asset began."""
        return time.perf_counter() - self.started

    def result(self, manifest: Manifest, metadata: Mapping[str, Any] | None = None) -> dg.MaterializeResult:
        """The materialization: what the asset has to say, then rows, bytes, seconds and where it lies."""
        return dg.MaterializeResult(
            metadata={
                **(metadata or {}),
                "dagster/row_count": manifest.rows,
                "seconds": round(self.seconds, 3),
                "bytes": manifest.size_bytes,
                "content_fingerprint": manifest.fingerprint,
                "path": dg.MetadataValue.path(str(self.project.warehouse.folder(self.asset, self.key))),
            },
            data_version=dg.DataVersion(manifest.fingerprint),
        )


def asset(
    name: str,
    project: Project,
    partitions: dg.PartitionsDefinition | None,
    make: Callable[[Publication], dg.MaterializeResult],
) -> dg.AssetsDefinition:
    """The asset that `AssetSpec` declares under this name; ``make`` publishes one partition of it.

    Before that the champion is settled where the asset follows it, the warehouse is found writable, and every input is found fresh
    and checked; what is not is named in one message with the command that repairs it.
    """

    @dg.asset(**declared(name, project), partitions_def=partitions)
    def made(
        context: dg.AssetExecutionContext, project_resource: ProjectResource, catalogue: CatalogueResource, tracking: TrackingResource
    ) -> dg.MaterializeResult:
        with readable_failures():
            opened = project_resource.open()
            if any(above.days == "champion" for above in SPECS[name].upstream):
                from ltv_assets.promotion.promotion import settle_champion

                settle_champion(opened)
            key = PartitionKey(context.partition_key) if context.has_partition_key else opened.submission_key
            sweep_staging(opened.warehouse.root)
            opened.warehouse.writable()
            inputs = opened.lineage().require_ready(name, key)
            tracker = tracking.open(opened)
            return make(Publication(opened, catalogue, tracker, name, key, context.run_id, inputs, time.perf_counter()))

    return made


def column_schema(columns: tuple[OutputColumn, ...]) -> dg.TableSchema:
    """Columns of a relation as the UI shows them."""
    return dg.TableSchema(
        columns=[dg.TableColumn(c.name, c.type, description=c.description + (f" [{c.unit}]" if c.unit else "")) for c in columns]
    )


def declared(asset: str, project: Project) -> dict[str, Any]:
    """Everything ``dg.asset`` wants to know of an asset but its partitions: what `AssetSpec` says of it, in Dagster's words."""
    spec = SPECS[asset]
    return {
        "name": asset,
        "deps": [_dependency(above, project.config) for above in spec.upstream],
        "group_name": spec.group,
        "owners": OWNERS,
        "kinds": set(spec.kinds),
        "code_version": spec.code_version,
        "description": spec.description,
        "metadata": {
            "dagster/column_schema": column_schema(spec.relation or project.flattened_columns),
            "dagster/table_name": f"ltv.main.{asset}",
        },
    }


def _dependency(above: Upstream, config: Config) -> dg.AssetDep:
    mappings: dict[str, Callable[[], dg.PartitionMapping]] = {
        "training": lambda: training_days_mapping(config),
        "training and holdout": lambda: holdout_mapping(config),
        "test": dg.AllPartitionMapping,
        "champion": dg.AllPartitionMapping,
        "history": dg.AllPartitionMapping,
    }
    return dg.AssetDep(above.asset, partition_mapping=mappings[above.days]() if above.days in mappings else None)


def picture_metadata(pictures: Mapping[str, bytes]) -> dict[str, dg.MarkdownMetadataValue]:
    """PNG pictures by file name as metadata ``picture_<name>``, so that none hides a figure of the same name."""
    from ltv_assets.plots import to_markdown_image

    names = {file: file.removesuffix(".png") for file in pictures}
    return {f"picture_{name}": dg.MetadataValue.md(to_markdown_image(pictures[file], name)) for file, name in names.items()}


def largest_groups(groups: Any) -> Any:
    """The day as a whole and the groups of which most is expected, of a frame whose first row is the day."""
    by_size = groups.iloc[1:].sort_values("expected_revenue_usd", ascending=False, kind="stable")
    return groups.loc[[groups.index[0], *by_size.head(SHOWN_GROUPS).index]]


def groups_picture(groups: Any, title: str, within: str) -> bytes:
    """Expected revenue of groups with its intervals, and what came where it is known."""
    from ltv_assets.plots import forecast_intervals

    names = [str(s) if s == v else f"{s} = {v}" for s, v in zip(groups["segment"], groups["value"], strict=True)]
    ends = (groups[name] for name in ("expected_revenue_usd", "revenue_low_usd", "revenue_high_usd"))
    return forecast_intervals(names, *ends, title=title, within=within, observed=groups.get("revenue_capped_usd"))


def markdown_table(rows: Sequence[Mapping[str, Any]]) -> dg.MarkdownMetadataValue:
    """Rows as a Markdown table; a short sentence when there is none."""
    if not rows:
        return dg.MetadataValue.md("nothing to show")
    names = list(rows[0])
    lines = ["| " + " | ".join(names) + " |", "|" + "---|" * len(names)]
    lines += ["| " + " | ".join(_cell(row[n]) for n in names) + " |" for row in rows]
    return dg.MetadataValue.md("\n".join(lines))


def _cell(value: Any) -> str:
    text = f"{value:.4f}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
