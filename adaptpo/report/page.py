"""The report page."""

from __future__ import annotations

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from adaptpo.report import learned_weights
from adaptpo.report.adaptation import gain_figure, learner_figure, margin_figure
from adaptpo.report.cost import time_figure, training_figure
from adaptpo.report.datasets import dataset_evaluation_table, dataset_iterations_table, datasets_table
from adaptpo.report.figures import FigureSpec, render
from adaptpo.report.outcome import dynamics_figure, reward_figure
from adaptpo.report.overview import header, key_figures, warnings
from adaptpo.report.reading import RunData
from adaptpo.report.samples import samples
from adaptpo.report.tables import dropped_list, dropped_table, evaluation_table, iteration_table, phase_table
from adaptpo.report.verdict import verdict
from adaptpo.run.files import write_text

FIGURES = (
    dynamics_figure,
    reward_figure,
    gain_figure,
    learner_figure,
    margin_figure,
    learned_weights.coefficient_figure,
    learned_weights.landscape_figure,
    learned_weights.gradient_figure,
    learned_weights.trajectory_figure,
    training_figure,
    time_figure,
)


def write_report(run: Path, out: Path | None = None, refresh: int | None = None) -> Path:
    """Writes the report of a run folder, finished or not; returns the path of its page.

    `out` is the folder for `report.html` and its figures; the default is `<run>/report`. `refresh`: seconds after which
    the browser loads the page again; None for never. Raises `RunError` if `run` is not a run folder or one of its files
    cannot be read.
    """
    data = RunData.open(Path(run))
    folder = Path(out) if out is not None else data.root / "report"
    folder.mkdir(parents=True, exist_ok=True)
    page = template().render(
        title=data.root.name,
        refresh=refresh,
        run=header(data),
        verdict=verdict(data),
        warnings=warnings(data),
        key_figures=key_figures(data),
        evaluation=evaluation_table(data),
        iterations=iteration_table(data),
        datasets=datasets_table(data),
        dataset_iterations=dataset_iterations_table(data),
        dataset_evaluation=dataset_evaluation_table(data),
        weight_groups=learned_weights.group_table(data),
        weight_visits=learned_weights.visit_table(data),
        feature_importance=learned_weights.importance_table(data),
        phases=phase_table(data),
        dropped=dropped_table(data),
        left_out=dropped_list(data),
        samples=samples(data),
        figures={spec.name: render(spec, folder) for spec in figure_specs(data)},
        config=data.config_text,
    )
    write_text(folder / "report.html", page)
    return folder / "report.html"


def figure_specs(run: RunData) -> list[FigureSpec]:
    """The figures for which the run holds data, in the order of the report."""
    return [spec for maker in FIGURES if (spec := maker(run))]


def template(name: str = "report.html.j2") -> Template:
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=loader, autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined
    )
    return environment.get_template(name)
