"""Records of finished runs: finding, filing and drawing them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Dict, Iterable, List, Mapping, Optional, Sequence

from matplotlib.figure import Figure

from experiments.catalogue import Case, Experiment
from noisin.config import Config, recorded_config
from noisin.figures import figure2, validation_panels
from noisin.runs.record import check_record, read_record, write_record
from noisin.system.errors import UserError

RESULTS = Path(__file__).resolve().parent / "results"


def load_records(*folders: Path) -> List[Dict[str, Any]]:
    """Every record in these folders, by name; none from a folder that is not there.

    Raises
    ------
    UserError
        If one is damaged or was changed, naming it.
    """
    return [read_record(path) for folder in folders for path in sorted(folder.glob("*.json"))]


def find_record(records: Iterable[Dict[str, Any]], config: Config) -> Optional[Dict[str, Any]]:
    """The record of the run of this configuration, or None."""
    for record in records:
        # Not the file's name: an option that is new since then has its default in the record's configuration.
        if recorded_config(record["config"]) == config:
            return record
    return None


def floor_of(records: Iterable[Mapping[str, Any]]) -> Optional[float]:
    """The perplexity below which no model can be, where the text's source is known."""
    return next((record["floor_ppl"] for record in records if record.get("floor_ppl")), None)


def file_record(folder: Path, config: Config, record: Dict[str, Any]) -> None:
    """Put the record of a finished run into `folder`.

    Raises
    ------
    UserError
        If it is not the record of this configuration, or cannot be written.
    """
    path = folder / f"{config.name}.json"
    if check_record(record, str(path)) != config:
        raise UserError(f"{path} cannot be written: the run's directory has another run's record.json; delete that")
    write_record(path, record)


def draw(experiment: Experiment, records: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw the curves of an experiment's runs: as Figure 2 if it has one case, else one panel per case."""
    if len(experiment.cases) == 1:
        return figure2(records, experiment.title, floor_of(records))
    panels = {case.title: [record for record in records if _covers(case, record)] for case in experiment.cases}
    return validation_panels(panels, experiment.title)


def _covers(case: Case, record: Mapping[str, Any]) -> bool:
    return case.covers(recorded_config(record["config"]))
