"""The figures of a run as lines of a terminal, Markdown, a page, and a plot.

`figures` is what run.py writes as JSON: "runs" maps a malloc to its table, and a table maps each workload to its family
("suite"), the least seconds the machine allows ("limit") and the "results" by framework.
"""

import html
import io
import math
from pathlib import Path

try:
    from matplotlib.figure import Figure
except ImportError:  # the tables do without
    Figure = None

SUBJECT = "mlxir"
WITHOUT_LIMIT = 5e-6  # seconds: where the limit is shorter, a call's overhead is all there is to see


def is_good(result):
    return "error" not in result and result["agrees"]


def best_peer(results):
    """(name, seconds) of the fastest peer with right results, or None."""
    peers = {name: r["median"] for name, r in results.items() if name != SUBJECT and is_good(r)}
    return min(peers.items(), key=lambda item: item[1]) if peers else None


def ratio(entry):
    """Best peer's time over mlxir's, or None if either is missing."""
    subject, best = entry["results"].get(SUBJECT), best_peer(entry["results"])
    return best[1] / subject["median"] if best and subject and is_good(subject) else None


def share(entry):
    """Of the machine's limit that mlxir reaches (where it is not in the run, the best peer), or None."""
    subject, best = entry["results"].get(SUBJECT), best_peer(entry["results"])
    seconds = subject["median"] if subject and is_good(subject) else best[1] if best else None
    return entry["limit"] / seconds if seconds and entry["limit"] >= WITHOUT_LIMIT else None


def geometric_mean(values):
    return math.exp(sum(map(math.log, values)) / len(values))


def problems(results):
    """(framework, what is wrong) of the results."""
    for name, result in results.items():
        if "error" in result:
            yield name, result["error"]
        elif not result["agrees"]:
            yield name, f"off by {result['relative_error']:.1e} of the largest (referee: {result['referee']})"


# -- the terminal ----------------------------------------------------------------------------------------------------
def header(names):
    return " ".join([f"{'ms (median)':18}", *[f"{name:>9} " for name in names], f"{'best peer':13}", " limit"])


def row(name, entry, names):
    """Milliseconds of each (with what is wrong with it), best peer / mlxir, share of the limit."""
    cells = [f"{name:18}"]
    for framework in names:
        result = entry["results"].get(framework)
        cells.append(f"{milliseconds(result):>9}{'!' if result and result.get('agrees') is False else ' '}")
    best, times, limit = best_peer(entry["results"]), ratio(entry), share(entry)
    cells.append(f"{'' if times is None else f'{times:.2f}':>6} {best[0] if best else '':6}")
    cells.append("" if limit is None else f"{limit:6.0%}")
    return " ".join(cells)


def milliseconds(result):
    if result is None:
        return "-"
    return "failed" if "error" in result else f"{result['median'] * 1e3:.4g}"


def summary(table):
    """One line: the geometric mean of best peer / mlxir, and the workloads below 1."""
    ratios = {name: r for name, entry in table.items() if (r := ratio(entry)) is not None}
    if not ratios:
        return f"no workload has both {SUBJECT} and a peer"
    below = [f"{name} {r:.2f}" for name, r in sorted(ratios.items(), key=lambda item: item[1]) if r < 1]
    mean = f"geometric mean of best peer / {SUBJECT}: {geometric_mean(ratios.values()):.2f}"
    return f"{mean} over {len(ratios)} workloads; below 1: {', '.join(below) or 'none'}"


def about(figures):
    """The machine and its limits."""
    m = figures["machine"]
    return (
        f"{figures['date']}; {m['cpu']}, {m['cores']} cores: {m['peak_gflops']:.0f} GFLOP/s,"
        f" {m['copy_gbytes']:.1f} GB/s copying and {m['read_gbytes']:.1f} reading main memory;"
        f" load average at the end {figures['load'][0]:.1f}"
    )


# -- tables ----------------------------------------------------------------------------------------------------------
def tables(figures):
    """(title, column names, rows of text) each: the times by malloc, then first calls and memory."""
    for malloc, table in figures["runs"].items():
        names = list(figures["versions"])
        title = f"Milliseconds of a call, median ({malloc} malloc)"
        columns = ["workload", *names, "spread", "best peer / mlxir", "share of the limit"]
        yield title, columns, [times_row(name, entry, names) for name, entry in table.items()]
    malloc, table = next(iter(figures["runs"].items()))
    cold = "nothing cached on disk" if figures["cold"] else "compile caches kept from an earlier run"
    fresh = "of a process for this workload alone" if figures["fresh"] else "of a process for all workloads"
    yield f"First call, seconds ({cold})", ["workload", *names], cost_rows(table, names, "first_call", 1, "{:.2f}")
    yield f"Peak resident memory, MiB ({fresh})", ["workload", *names], cost_rows(table, names, "peak", 2**20, "{:.0f}")


def times_row(name, entry, names):
    results = entry["results"]
    best, times, limit, subject = best_peer(results), ratio(entry), share(entry), results.get(SUBJECT)
    cells = []
    for framework in names:
        result = results.get(framework)
        wrong = result is not None and result.get("agrees") is False
        cells.append(milliseconds(result) + (" (wrong)" if wrong else ""))
    spread = ""
    if subject and "median" in subject:
        spread = " ".join([f"{subject[key] / subject['median'] - 1:+.0%}" for key in ("decile", "ninth_decile")])
    compared = "" if times is None else f"{times:.2f} ({best[0]})"
    return [name, *cells, spread, compared, "" if limit is None else f"{limit:.0%}"]


def cost_rows(table, names, key, unit, form):
    rows = []
    for name, entry in table.items():
        values = [entry["results"].get(framework, {}).get(key) for framework in names]
        rows.append([name, *["-" if value is None else form.format(value / unit) for value in values]])
    return rows


def notes(figures):
    """What a reader must know, a paragraph each."""
    yield about(figures) + "."
    yield f"Versions: {', '.join(figures['versions'].values())}. {figures['rounds']} interleaved rounds of about" + (
        f" {figures['burst']:g} s each; spread: first and ninth decile of mlxir's samples from its median."
    )
    if figures["absent"]:
        yield f"Not installed, left out: {', '.join(figures['absent'])}."
    for malloc, table in figures["runs"].items():
        yield f"With the {malloc} malloc, {summary(table)}."
        found = [(name, *problem) for name, entry in table.items() for problem in problems(entry["results"])]
        failed = [f"{name}, {framework}: {text.splitlines()[-1]}" for name, framework, text in found]
        alone = [name for name, e in table.items() if e["results"].get(SUBJECT, {}).get("referee") == SUBJECT]
        if alone:
            yield f"Unchecked, no peer to agree with: {', '.join(alone)}."
        if failed:
            yield "Left out of the comparison: " + "; ".join(failed) + "."


# -- the plot --------------------------------------------------------------------------------------------------------
def plot(figures):
    """The best peer's time over mlxir's, a bar for each workload and malloc, as SVG; None without matplotlib."""
    if Figure is None:
        return None
    runs = {
        malloc: {name: r for name, entry in table.items() if (r := ratio(entry)) is not None}
        for malloc, table in figures["runs"].items()
    }
    names = list(next(iter(runs.values())))[::-1]
    figure = Figure(figsize=(8, 1 + 0.22 * len(names) * len(runs)), layout="constrained")
    axes = figure.add_subplot()
    height = 0.8 / len(runs)
    for n, (malloc, ratios) in enumerate(runs.items()):
        present = [(i - n * height, ratios[name]) for i, name in enumerate(names) if name in ratios]
        axes.barh([i for i, _ in present], [r - 1 for _, r in present], height, left=1, label=f"{malloc} malloc")
    axes.axvline(1, color="black", linewidth=0.8)
    axes.set_xscale("log", base=2)
    axes.set_yticks(range(len(names)), names, fontsize=8)
    axes.set_xlabel("best peer's time / mlxir's (right of 1: mlxir is faster)")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.margins(y=0.01)
    if len(runs) > 1:
        axes.legend()
    svg = io.StringIO()
    figure.savefig(svg, format="svg", metadata={"Date": None})
    return svg.getvalue()[svg.getvalue().index("<svg") :]


# -- files -----------------------------------------------------------------------------------------------------------
def replace_section(path: Path, name: str, text: str) -> None:
    """Put `text` between the markers `<!-- NAME:begin -->` and `<!-- NAME:end -->` of a file, or make a file with them.

    Raises ValueError for a file that exists and has no such markers.
    """
    begin, end = f"<!-- {name}:begin -->", f"<!-- {name}:end -->"
    before, after = "", "\n"
    if path.exists():
        before, found, rest = path.read_text().partition(begin)
        _, found_end, after = rest.partition(end)
        if not found or not found_end:
            raise ValueError(f"{path} has no {begin} and {end}: where should the text go?")
    path.write_text(f"{before}{begin}\n{text.strip()}\n{end}{after}")


def markdown_table(columns, rows):
    lines = ["| " + " | ".join(cells) + " |" for cells in (columns, ["---", *["---:"] * (len(columns) - 1)], *rows)]
    return "\n".join(lines)


def write_markdown(figures, path):
    """The section `bench` of the file, and the plot beside it."""
    parts = list(notes(figures))
    if svg := plot(figures):
        picture = path.with_suffix(".svg")
        picture.write_text(svg)
        parts.append(f"![The best peer's time over mlxir's]({picture.name})")
    else:
        parts.append("No plot: matplotlib is not installed.")
    parts += [f"### {title}\n\n{markdown_table(columns, rows)}" for title, columns, rows in tables(figures)]
    replace_section(path, "bench", "\n\n".join(parts))


def write_html(figures, path):
    """A page of its own."""
    style = "body{font:15px sans-serif;margin:2em}table{border-collapse:collapse}"
    style += "td,th{padding:2px 10px;text-align:right}"
    style += "td:first-child,th:first-child{text-align:left}tr:nth-child(even){background:#f2f2f2}"
    parts = [f"<p>{html.escape(note)}</p>" for note in notes(figures)]
    parts.append(plot(figures) or "<p>No plot: matplotlib is not installed.</p>")
    for title, columns, rows in tables(figures):
        parts.append(f"<h2>{html.escape(title)}</h2><table><tr>")
        parts += [f"<th>{html.escape(column)}</th>" for column in columns]
        parts += ["</tr>", *["<tr>" + "".join([f"<td>{html.escape(c)}</td>" for c in r]) + "</tr>" for r in rows]]
        parts.append("</table>")
    page = f"<!doctype html><html lang='en'><meta charset='utf-8'><title>mlxir bench</title><style>{style}</style>"
    path.write_text(f"{page}<h1>mlxir bench</h1>{''.join(parts)}</html>\n")
