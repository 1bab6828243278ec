"""Draw the study's figures from its tables, as PDF and PNG."""

from sparseswaps.base.files import write_atomically
from sparseswaps.report.figures import draw_all, save
from sparseswaps.report.tables import read_table


def run(inputs, outputs, settings, context):
    tables = {name: read_table(path) for name, path in inputs.items()}
    drawn = 0
    with write_atomically(outputs["figures"]) as folder:
        folder.mkdir()
        for path, figure in draw_all(tables, settings["width"]):
            save(figure, folder / path, settings["dpi"])
            drawn += 1
    return f"{drawn} figures"
