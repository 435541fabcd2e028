#!/usr/bin/env python3
"""The record, the plot and README's table from the figures of side_by_side.py.

    scripts/peers/report.py target/peers.json [MORE.json …] [--record benches/record/2026-01-31-peers] [--readme README.md]

Figures of several runs on one machine count as one; of a case that is in two files the later counts. Writes RECORD.md with every case,
and RECORD.svg, and RECORD-bf16.svg if bf16 was measured. If every case of `just bench-peers` is there and no answer is off, RECORD is
benches/record/<date>-peers by default, and the table of README is replaced; otherwise RECORD is target/peers, and README stays unless
it is named. Needs nothing but Python.
"""

import argparse
import collections
import json
import math
import pathlib
import sys
from xml.sax.saxutils import escape

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
ENGINES = ["nd f32", "nd bf16", "ort", "ov f32", "ov bf16"]
# What ndserve at a precision stands beside.
PEERS = {"f32": ("nd f32", ["ort", "ov f32"]), "bf16": ("nd bf16", ["ov bf16"])}
NAMES = {"nd f32": "ndserve", "nd bf16": "ndserve", "ort": "ONNX Runtime", "ov f32": "OpenVINO", "ov bf16": "OpenVINO"}
# Codes of 8 bits run as they are whatever the precision, each beside the peer that has kernels for them.
CODES = {"resnet50_int8": "ov f32", "bert_base_int8": "ort"}
TREES = ["xgb500", "lgb500"]
# The rows and threads that README and the plot have a column for.
COLUMNS = [(1, 1), (1, 2), (8, 1), (8, 2)]
README_MODELS = ["resnet50", "mobilenet_v2", "vit_b_16", "yolov8n", "bert_base", "minilm_l6", "gpt2_decode", "deepfm", "lgb500"]
BEGIN, END = "<!-- bench-peers -->", "<!-- /bench-peers -->"


def read(paths):
    """The figures of all files as those of one run."""
    runs = [json.loads(pathlib.Path(path).read_text()) for path in paths]
    for key in ("cpu", "versions"):
        if any(run[key] != runs[0][key] for run in runs):
            sys.exit(f"the files differ in {key}: they are not figures of one run")
    key = lambda case: (case["model"], case["rows"], case["threads"])
    cases = {key(case): case for run in runs for case in run["cases"]}
    planned = {tuple(case) for run in runs for case in run["planned"]}
    return {**runs[-1], "cases": [cases[k] for k in sorted(cases)], "missing": sorted(planned - set(cases))}


def ratio(case, precision, peers=None):
    """The time of the fastest peer over ndserve's, or None if one of them was not measured."""
    own, others = PEERS[precision]
    times = [case["median_ms"][peer] for peer in peers or others if peer in case["median_ms"]]
    return min(times) / case["median_ms"][own] if times and own in case["median_ms"] else None


def ratios(cases, precision):
    """Case and ratio of the cases that have one; without codes, and trees at f32 alone, for precision changes neither."""
    left_out = [*CODES, *(TREES if precision != "f32" else [])]
    found = [(case, ratio(case, precision)) for case in cases if case["model"] not in left_out]
    return [(case, value) for case, value in found if value is not None]


def mean(values):
    return math.exp(sum(map(math.log, values)) / len(values))


def wrong(figures):
    """The cases that ndserve did not run at f32, or answered otherwise."""
    return [f"{case['model']} ({column(case['rows'], case['threads'])})" for case in figures["cases"] if case["wrong"]]


def plural(count, word):
    return f"{count} {word}" + ("s" if count != 1 else "")


def column(rows, threads):
    return f"{plural(rows, 'row')}, {plural(threads, 'thread')}"


def at(cases, place):
    return [case for case in cases if (case["rows"], case["threads"]) == place]


def head(figures):
    """What was measured, where and when, for the record."""
    versions = "; ".join(f"{name} {version}" for name, version in figures["versions"].items())
    return (
        f"{figures['date']}, {figures['cores']} × {figures['cpu']}; sources {figures['commit']}; {versions}.\n"
        f"Medians of interleaved slices: {plural(figures['rounds'], 'round')} of {figures['seconds']:g} s. `just bench-peers`. A ratio above 1: ndserve is faster.\n"
    )


def row(case):
    """A case as a line of the table of all."""
    times, far = case["median_ms"], case["difference"]
    values = [ratio(case, precision) for precision in PEERS]
    cells = [f"{times[key]:.3f}" if key in times else "-" for key in ENGINES] + [f"{value:.2f}" if value else "-" for value in values]
    off = ", ".join(f"{far[key]:.0e}" if key in far else "-" for key in ("nd f32", "nd bf16", "ov bf16"))
    return f"| {case['model']} | {case['rows']} | {case['threads']} | " + " | ".join(cells) + f" | {off} |"


def table(cases):
    """Every case."""
    title = " | ".join(f"{key} ms" for key in ENGINES)
    lines = [f"| model | rows | threads | {title} | best f32 / nd f32 | ov bf16 / nd bf16 | off: nd f32, nd bf16, ov bf16 |"]
    return [*lines, "|---" + "|--:" * (len(ENGINES) + 4) + "|---|", *map(row, cases)]


def summary(cases, precision, models):
    """Geometric mean, worst and some models by rows and threads, as a table."""
    places = [place for place in COLUMNS if ratios(at(cases, place), precision)]
    if not places:
        return []
    columns = [ratios(at(cases, place), precision) for place in places]
    lines = [f"| {precision} | " + " | ".join(column(*place) for place in places) + " |", "|---" + "|--:" * len(places) + "|"]
    lines.append("| geometric mean | " + " | ".join(f"**{mean([value for _, value in found]):.2f}**" for found in columns) + " |")
    worst = [min(found, key=lambda pair: pair[1]) for found in columns]
    lines.append("| worst | " + " | ".join(f"{value:.2f} {case['model']}" for case, value in worst) + " |")
    for model in models:
        values = [next((value for case, value in found if case["model"] == model), None) for found in columns]
        if any(values):
            lines.append(f"| {model} | " + " | ".join(f"{value:.2f}" if value else "-" for value in values) + " |")
    return lines


def findings(figures):
    """What one wants to know of all cases, a sentence each."""
    cases, lines = figures["cases"], []
    for precision in PEERS:
        found = ratios(cases, precision)
        if found:
            worst, value = min(found, key=lambda pair: pair[1])
            where = f"{worst['model']}, {column(worst['rows'], worst['threads'])}"
            lines.append(f"{precision}, {plural(len(found), 'case')}: geometric mean {mean([v for _, v in found]):.2f}, worst {value:.2f} ({where}).")
    for model, peer in CODES.items():
        found = [(case, ratio(case, "f32", [peer])) for case in cases if case["model"] == model]
        found = ", ".join(f"{value:.2f} ({column(case['rows'], case['threads'])})" for case, value in found if value)
        if found:
            lines.append(f"{model} beside {NAMES[peer]}: {found}.")
    for model in TREES:
        found = [(case["rows"], case["threads"], ratio(case, "f32", ["ort"])) for case in cases if case["model"] == model]
        found = ", ".join(f"{value:.2f} ({column(rows, threads)})" for rows, threads, value in found if value)
        if found:
            lines.append(f"{model} beside ONNX Runtime: {found}.")
    for model in ("resnet50", "bert_base"):
        one, two = ([case["median_ms"] for case in at(cases, (1, threads)) if case["model"] == model] for threads in (1, 2))
        if one and two:
            found = ", ".join(f"{key} {one[0][key] / two[0][key]:.2f}" for key in ENGINES if key in one[0] and key in two[0])
            lines.append(f"{model}, one row, time with one thread over that with two: {found}.")
    both = [case for case in cases if {"nd bf16", "ov bf16"} <= case["difference"].keys()]
    if both:
        farther = [case for case in both if case["difference"]["nd bf16"] > case["difference"]["ov bf16"]]
        places = ", ".join(f"{case['model']} ({column(case['rows'], case['threads'])})" for case in farther)
        lines.append(f"ndserve at bf16 farther from f32 than OpenVINO at bf16: {places or 'nowhere'}.")
    if wrong(figures):
        lines.append("**Off, or not run by ndserve**: " + ", ".join(wrong(figures)) + ".")
    failed = {}
    for case in cases:
        for engine, error in case["errors"].items():
            failed.setdefault((engine, error), []).append(case["model"])
    lines += [f"{engine} did not run {', '.join(sorted(set(models)))}: {error}" for (engine, error), models in failed.items()]
    return lines


def record(figures):
    models = sorted({case["model"] for case in figures["cases"]})
    parts = [[f"# Beside ONNX Runtime and OpenVINO, {figures['date']}"], [head(figures).rstrip("\n")]]
    parts += [summary(figures["cases"], precision, models) for precision in PEERS]
    parts += [[f"- {line}" for line in findings(figures)], table(figures["cases"])]
    return "\n\n".join("\n".join(lines) for lines in parts if lines) + "\n"


def readme_block(figures, link):
    """README's table; its lines but those of models are the record's, which tests/docs.rs holds it to."""
    versions = figures["versions"]
    lines = [
        f"The engine beside ONNX Runtime {versions['onnxruntime']} and OpenVINO {versions['openvino']} on {figures['cores']} × {figures['cpu']}, "
        f"{figures['date']}: the time of the faster of the two over ndserve's, so that above 1 ndserve is faster "
        f"([all cases]({link}.md), [plot]({link}.svg)).",
        "",
        *summary(figures["cases"], "f32", README_MODELS),
    ]
    return "\n".join(lines)


def replace(text, block):
    """The text with what stands between the marks replaced."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        sys.exit(f"no place for the table: {BEGIN} and {END} are missing")
    return f"{before}{BEGIN}\n{block}\n{END}{after}"


# --- the plot ------------------------------------------------------------------------------------------------------------

# Colours by class, on a light page and on a dark one. Written out, since not every viewer knows variables.
LIGHT = {"page": "#ffffff", "text": "#1f2328", "grid": "#d1d9e0", "one": "#1f2328", "nd": "#1f6feb", "ort": "#d4a72c", "ov": "#8c959f"}
DARK = {"page": "#0d1117", "text": "#e6edf3", "grid": "#3d444d", "one": "#e6edf3", "nd": "#4493f8", "ort": "#bb8009", "ov": "#7d8590"}
FONTS = """
text { font: 11px system-ui, sans-serif; } .title { font-size: 15px; font-weight: 600; } .value { font-size: 9.5px; }
.right { text-anchor: end; } .middle { text-anchor: middle; } .one { stroke-width: 1.5; }
"""


def colours(of):
    paint = lambda name: f"text {{ fill: {of[name]}; }}" if name == "text" else f".{name} {{ {'stroke' if name in ('grid', 'one') else 'fill'}: {of[name]}; }}"
    return " ".join(map(paint, of))


STYLE = f"{FONTS}{colours(LIGHT)}\n@media (prefers-color-scheme: dark) {{ {colours(DARK)} }}\n"
LABELS, PANEL, GAP, TOP, BAR, LINE = 122, 176, 34, 92, 6, 26
# Beyond this a bar is cut off; its number is written beside it.
SPEED_MAX = 2.0


def plot(figures, precision):
    """Bars per model: how fast each engine is in parts of the faster peer, a panel for rows and threads; None without figures."""
    own, peers = PEERS[precision]
    kept = lambda model: precision == "f32" or model not in [*CODES, *TREES]
    cases = [case for case in figures["cases"] if kept(case["model"]) and ratio(case, precision) is not None]
    places = [place for place in COLUMNS if at(cases, place)]
    if not places:
        return None
    first = {case["model"]: ratio(case, precision) for place in reversed(places) for case in at(cases, place)}
    models = sorted(first, key=lambda model: -first[model])
    right = max(LABELS + len(places) * (PANEL + GAP), 560)
    width, bottom = right + 8, TOP + len(models) * LINE
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {bottom + 30}" width="{width}" height="{bottom + 30}" role="img">']
    title = f"ndserve beside {' and '.join(NAMES[peer] for peer in peers)}, {precision}"
    out += [f"<title>{escape(title)}</title><style>{STYLE}</style>", f'<rect class="page" width="{width}" height="{bottom + 30}"/>']

    def text(x, y, content, kind=""):
        out.append(f'<text x="{x:g}" y="{y:g}" class="{kind}">{escape(content)}</text>')

    whose = "the faster peer's" if len(peers) > 1 else f"{NAMES[peers[0]]}'s"
    text(12, 22, title, "title")
    text(12, 40, f"{figures['cores']} × {figures['cpu']}, {figures['date']}; speed in parts of {whose}: longer is faster")
    x = 12
    for engine in [own, *peers]:
        out.append(f'<rect class="{engine.split()[0]}" x="{x}" y="51" width="10" height="10"/>')
        text(x + 15, 60, NAMES[engine])
        x += 36 + 7 * len(NAMES[engine])
    for number, model in enumerate(models):
        text(LABELS - 8, TOP + number * LINE + 15, model, "right")
    for panel, place in enumerate(places):
        left = LABELS + panel * (PANEL + GAP)
        across = lambda speed: left + PANEL * min(speed, SPEED_MAX) / SPEED_MAX
        text(left, TOP - 10, column(*place))
        for tick in range(int(SPEED_MAX * 2) + 1):
            x = across(tick / 2)
            out.append(f'<line class="grid" x1="{x:g}" x2="{x:g}" y1="{TOP}" y2="{bottom}"/>')
            text(x, bottom + 16, f"{tick / 2:g}", "middle")
        by_model = {case["model"]: case["median_ms"] for case in at(cases, place)}
        for number, model in enumerate(models):
            times = by_model.get(model, {})
            best = min((times[peer] for peer in peers if peer in times), default=None)
            for offset, engine in enumerate([own, *peers]):
                if best is not None and engine in times:
                    speed, y = best / times[engine], TOP + number * LINE + 3 + offset * (BAR + 1)
                    kind = engine.split()[0]
                    out.append(f'<rect class="{kind}" x="{left}" y="{y}" width="{across(speed) - left:.1f}" height="{BAR}"/>')
                    if engine == own:
                        # Not across the line at 1.
                        text(across(max(speed, 1)) + 3, y + BAR + 1, f"{speed:.2f}", "value")
        out.append(f'<line class="one" x1="{across(1):g}" x2="{across(1):g}" y1="{TOP}" y2="{bottom}"/>')
    return "\n".join([*out, "</svg>"]) + "\n"


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("figures", nargs="+")
    parser.add_argument("--record", type=pathlib.Path, help="the files to write, without their ends")
    parser.add_argument("--readme", type=pathlib.Path)
    args = parser.parse_args()
    figures = read(args.figures)
    whole = not figures["missing"] and not wrong(figures)
    target = args.record or ROOT / (f"benches/record/{figures['date']}-peers" if whole else "target/peers")
    readme = args.readme or (ROOT / "README.md" if whole and not args.record else None)
    target.parent.mkdir(parents=True, exist_ok=True)
    written = {target.with_name(f"{target.name}.md"): record(figures)}
    for precision in PEERS:
        end = ".svg" if precision == "f32" else f"-{precision}.svg"
        written[target.with_name(target.name + end)] = plot(figures, precision)
    if readme:
        link = target.resolve().relative_to(readme.resolve().parent).as_posix()
        written[readme] = replace(readme.read_text(), readme_block(figures, link))
    for path, content in written.items():
        if content is not None:
            path.write_text(content)
            print(f"wrote {path}")
    if not whole:
        missing = collections.Counter(model for model, _, _ in figures["missing"])
        print("not measured: " + (", ".join(f"{model} ({plural(count, 'case')})" for model, count in missing.items()) or "nothing"), file=sys.stderr)
        print("off, or not run: " + (", ".join(wrong(figures)) or "nothing"), file=sys.stderr)


if __name__ == "__main__":
    main()
