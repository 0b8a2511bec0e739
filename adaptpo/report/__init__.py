"""The report of a run: one self-contained HTML page, made from the run folder alone.

`reading` and `visits` read the folder; `overview`, `tables` and `samples` summarize it; `outcome`, `adaptation`,
`learned_weights` (with `shapley`) and `cost` select the data of the figures; `plots`, `adaptation_plots` and
`learned_weight_plots` draw them on a `canvas`; `verdict` puts the run into words; `page` assembles the page. Parts
without data in the run are omitted. `watching` follows a run, `comparing` sets several side by side.
"""

from adaptpo.report.comparing import write_comparison
from adaptpo.report.formats import duration, plain_text
from adaptpo.report.overview import header, key_figures
from adaptpo.report.page import figure_specs, write_report
from adaptpo.report.reading import RunData
from adaptpo.report.samples import samples
from adaptpo.report.tables import dropped_table, evaluation_table, iteration_table, phase_table
from adaptpo.report.watching import watch

__all__ = [
    "RunData",
    "dropped_table",
    "duration",
    "evaluation_table",
    "figure_specs",
    "header",
    "iteration_table",
    "key_figures",
    "phase_table",
    "plain_text",
    "samples",
    "watch",
    "write_comparison",
    "write_report",
]
