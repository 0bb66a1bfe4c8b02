"""The page of a results.json: all that was judged is on it, escaped, and every figure's numbers."""

from __future__ import annotations

import csv
import itertools
import json
import re
import xml.etree.ElementTree as ET
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from llfc_core.report.figures import figures
from llfc_core.report.page import gauge, sentence, settings_of, write_page
from llfc_core.report.plot import scale_words
from llfc_core.report.recorded import SettingResults
from llfc_core.report.table import control_word, number, word
from tests.report.planted import LAYERS, results

VOID = {"meta", "link", "br", "img", "col", "input", "hr"}
QUICK = scale_words("quick")[0]


class Parsed(HTMLParser):
    """Elements with their attributes, the text, and whether tags are nested well."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> of nothing"
        assert self.open.pop() == tag
        self.text += " " if tag in ("th", "td", "p", "li", "dt", "dd") else ""

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text += data

    def of(self, name: str) -> list[str]:
        return [attrs[name] or "" for _, attrs in self.elements if name in attrs]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    write_page(results(folder, "mlp-one", "mlp-two"), folder)
    return folder


@pytest.fixture(scope="module")
def given(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text())


@pytest.fixture(scope="module")
def page(folder: Path) -> Parsed:
    return Parsed((folder / "index.html").read_text(encoding="utf-8"))


def without_figures(given: dict[str, Any]) -> dict[str, Any]:
    """The verdicts alone: drawing takes a second a setting."""
    return given | {"settings": [], "numbers": {}}


def flat(text: str) -> str:
    return " ".join(text.split())


# ---- the claims ----------------------------------------------------------------------------------


def test_every_verdict_is_on_the_page(folder: Path, given: dict[str, Any]) -> None:
    text = (folder / "index.html").read_text(encoding="utf-8")
    rows = re.findall(r'<tr id="v\d+-\d+">.*?</tr>', text, re.S)
    told = {}
    for row in rows:
        cells = [
            flat(re.sub(r"<[^>]*>", " ", c)) for c in re.findall(r"<t[hd].*?</t[hd]>", row, re.S)
        ]
        told[cells[0], cells[2], cells[3], cells[4]] = cells
    assert len(rows) == sum(not v["control"] for v in given["verdicts"])
    for v in given["verdicts"]:
        if v["control"]:
            said = f"{v['control']} {number(v['value'])} {control_word(v)}"
            assert any(said in cells[-1] for cells in told.values())
            continue
        interval = f"{number(v['low'])} to {number(v['high'])}"
        bound = f"{'≤' if v['at_most'] else '≥'} {v['bound']:.3g}"
        cells = told[v["setting"], f"{number(v['value'])} {v['unit']}".strip(), interval, bound]
        assert word(v) in cells[1]
        assert v["layer"] in cells


def test_the_matrix_links_every_verdict_to_its_row(page: Parsed, given: dict[str, Any]) -> None:
    cells = [a for tag, a in page.elements if tag == "a" and " on mlp-" in (a.get("title") or "")]
    titles = {
        f"{v['claim']} on {v['setting']}: {word(v)}" for v in given["verdicts"] if not v["control"]
    }
    assert {a["title"] for a in cells} == titles
    ids = set(page.of("id"))
    assert all((a["href"] or "")[1:] in ids for a in cells)
    assert len({a["href"] for a in cells}) == len(cells)


def test_findings_notes_and_where_to_look_are_told(tmp_path: Path) -> None:
    given = without_figures(results(tmp_path, "mlp"))
    first, second, third = [v for v in given["verdicts"] if not v["control"]][:3]
    first.update(status="rejected", finding="it is known why")
    second.update(status="vacuous", note="nothing to be seen")
    third.update(status="rejected")
    alarm = next(v for v in given["verdicts"] if v["control"])
    alarm.update(status="holds")
    page = Parsed(write_page(given, tmp_path).read_text(encoding="utf-8"))
    text = flat(page.text)
    assert "it is known why" in text
    assert "nothing to be seen" in text
    assert f"Look at {third['look_at']}." in text
    assert "PASSES" in text
    assert all(f"{symbol} " in text for symbol in "◆–✗✓")


def test_failed_tests_and_an_interruption_are_told(tmp_path: Path) -> None:
    red = [f"phenomena/test_x.py::test_<{i}>" for i in range(23)]
    given = without_figures(results(tmp_path, "mlp", red=red, interrupted=True))
    page = Parsed(write_page(given, tmp_path).read_text(encoding="utf-8"))
    text = flat(page.text)
    assert "Interrupted." in text
    assert "23 tests failed." in text
    assert red[19] in text
    assert red[20] not in text
    assert "and 3 more" in text
    given.update(red=[], interrupted=False)
    quiet = Parsed(write_page(given, tmp_path).read_text(encoding="utf-8"))
    assert "Interrupted" not in quiet.text
    assert "failed" not in quiet.text


def test_quick_is_said_at_the_top_on_every_figure_and_in_every_caption(tmp_path: Path) -> None:
    for scale, often in (("quick", True), ("paper", False)):
        at = tmp_path / scale
        text = write_page(results(at, "mlp", scale=scale), at).read_text(encoding="utf-8")
        assert ("Quick scale." in Parsed(text).text) == often
        assert ("Paper scale." in Parsed(text).text) != often
        drawn = re.findall(r"<figure.*?</figure>", text, re.S)
        assert len(drawn) > 10
        for figure in drawn:
            svg, caption = figure.split("</svg>")
            assert (QUICK in svg.partition("</desc>")[2]) == often
            assert (QUICK in caption) == often
        for file in (at / "figures").glob("*.svg"):
            assert (QUICK in file.read_text(encoding="utf-8")) == often


def test_other_numbers_and_what_did_not_run_are_shown(page: Parsed) -> None:
    text = flat(page.text)
    for told in ("something else", "1.5, 2.5", "as it is", "vgg: no data", "torch 2.15"):
        assert told in text


def test_tables_have_the_papers_numbers_beside_ours(page: Parsed, given: dict[str, Any]) -> None:
    text = flat(page.text)
    assert "the paper’s Table 1, B on A’s features 1.90 1.77 2.69 – –" in text
    linked = [p for p in given["settings"][0]["pairs"] if p["pair"] == "linked"]
    ours = [100 * sum(p["stitched_error"]["mean"][i][0] for p in linked) / 2 for i in range(3)]
    ends = [100 * sum(p["error"]["mean"][i] for p in linked) / 2 for i in (-1, 0)]
    row = " ".join(f"{x:.2f}" for x in (*ends, *ours))
    assert f"B on A’s features {row}" in text


# ---- the page as a document ----------------------------------------------------------------------


def test_ids_are_unique_and_every_reference_has_its_own(folder: Path, page: Parsed) -> None:
    ids = Counter(page.of("id"))
    assert all(count == 1 for count in ids.values()), ids.most_common(3)
    text = (folder / "index.html").read_text(encoding="utf-8")
    inside = re.findall(r"url\(#([^)]*)\)", text) + re.findall(r'href="#([^"]*)"', text)
    assert inside
    assert set(inside) <= ids.keys()
    spoken = " ".join(page.of("aria-labelledby")).split()
    assert set(spoken) <= ids.keys()


def test_it_asks_for_nothing_from_outside(folder: Path, page: Parsed) -> None:
    named = [*page.of("src"), *page.of("href"), *page.of("xlink:href"), *page.of("action")]
    assert named
    assert not any(re.match(r"\w+:|//", name) for name in named if name != "data:,")
    text = (folder / "index.html").read_text(encoding="utf-8")
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)
    for link in named:
        if not link.startswith(("#", "data:")):
            assert (folder / link).is_file(), link


def test_it_can_be_read_without_seeing_it(page: Parsed) -> None:
    tags = [tag for tag, _ in page.elements]
    assert ("html", {"lang": "en"}) in page.elements
    assert tags.count("h1") == tags.count("main") == 1
    levels = [int(tag[1]) for tag in tags if re.fullmatch(r"h\d", tag)]
    assert all(deeper - level <= 1 for level, deeper in itertools.pairwise(levels))
    drawings = [a for tag, a in page.elements if tag == "svg" and a.get("class") == "drawing"]
    assert drawings
    assert all(a["role"] == "img" and a["aria-labelledby"] for a in drawings)
    tables = [a for tag, a in page.elements if tag == "table" and a.get("class") != "pairs"]
    assert tags.count("caption") == len(tables)


def test_figures_say_what_made_them(page: Parsed) -> None:
    text = flat(page.text)
    assert "pytest phenomena/test_llfc.py -k mlp-one --replicates 2" in text
    assert "Fig. 2, 8 of the paper." in text
    assert "In the manner of Fig. 4." in text


HOSTILE = (
    '"><script>alert(1)</script>{{ 7 * 7 }} %s',
    "../../$\\frac{$ </svg> --> <b> &amp;",
)


def test_hostile_names_are_only_text(tmp_path: Path) -> None:
    """Of settings, findings, layers, numbers: nothing becomes an element, a path or a formula."""
    given = results(tmp_path, *HOSTILE, red=list(HOSTILE), device=HOSTILE[0])
    for v in given["verdicts"]:
        v.update(status="rejected", finding=HOSTILE[0], layer=HOSTILE[1], note=HOSTILE[1])
    for s in given["settings"]:
        for p in s["pairs"]:
            p["layers"][0] = p["linear"][1] = HOSTILE[0]
    given["numbers"][HOSTILE[0]][HOSTILE[0]] = {HOSTILE[1]: HOSTILE[0]}
    given["skipped"] = list(HOSTILE)
    path = write_page(given, tmp_path)
    page = Parsed(path.read_text(encoding="utf-8"))
    scripts = [tag for tag, _ in page.elements if tag == "script"]
    assert len(scripts) == 1
    for name in HOSTILE:
        assert name in page.text
    ids = Counter(page.of("id"))
    assert max(ids.values()) == 1
    made = {p.relative_to(tmp_path).parts[0] for p in tmp_path.rglob("*")}
    assert made == {"index.html", "results.json", "figures"}
    for file in (tmp_path / "figures").iterdir():
        assert re.fullmatch(r"[\w.-]+", file.name)
        if file.suffix == ".svg":
            ET.fromstring(file.read_text(encoding="utf-8"))


def test_the_same_results_give_the_same_bytes(tmp_path: Path, folder: Path) -> None:
    write_page(results(tmp_path, "mlp-one", "mlp-two"), tmp_path)
    files = sorted(p.relative_to(folder) for p in folder.rglob("*") if p.is_file())
    assert files == sorted(p.relative_to(tmp_path) for p in tmp_path.rglob("*") if p.is_file())
    for file in files:
        assert (tmp_path / file).read_bytes() == (folder / file).read_bytes(), file


# ---- figures -------------------------------------------------------------------------------------


def test_figures_are_files_that_stand_alone(folder: Path) -> None:
    drawn = sorted((folder / "figures").glob("*.svg"))
    assert {p.stem for p in drawn} == {p.stem for p in (folder / "figures").glob("*.csv")}
    for path in drawn:
        text = path.read_text(encoding="utf-8")
        root = ET.fromstring(text)
        assert root.tag == "{http://www.w3.org/2000/svg}svg"
        used = set(re.findall(r"var\((--\w+)\)", text))
        assert used
        assert all(text.count(f"{name}:") == 2 for name in used)  # for light and for dark
        assert not re.search(r"#0a00\w\w", text), "a placeholder was left"


def read(folder: Path, name: str) -> list[dict[str, str]]:
    with (folder / "figures" / f"{name}.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def numbers_of(given: dict[str, Any], group: str) -> list[dict[str, Any]]:
    (setting,) = [s for s in given["settings"] if s["setting"] == "mlp-one"]
    return [p for p in setting["pairs"] if p["pair"] == group]


def cell(value: float | None) -> str:
    return "" if value is None else str(value)


def test_the_table_of_cosines_is_that_of_the_results(folder: Path, given: dict[str, Any]) -> None:
    rows = read(folder, "mlp-one-cosine")
    expected = {}
    for p in numbers_of(given, "linked"):
        for i, layer in enumerate(LAYERS):
            for alpha in (0.25, 0.5, 0.75):
                k = p["alphas"].index(alpha)
                of = p["one_minus_cos"]
                expected[str(alpha), str(p["replicate"]), layer] = (
                    cell(of["mean"][i][k]),
                    cell(of["std"][i][k]),
                )
            of = p["one_minus_cos_ab"]
            expected["A,B", str(p["replicate"]), layer] = cell(of["mean"][i]), cell(of["std"][i])
    found = {(r["alpha"], r["replicate"], r["layer"]): (r["mean"], r["std"]) for r in rows}
    assert found == expected
    assert len(rows) == len(expected)


@pytest.mark.parametrize(
    ("name", "column", "group", "key"),
    [
        ("commutativity-independent", "value", "linked", "dist_com"),
        ("commutativity-independent", "value", "independent", "dist_com"),
        ("rho", "value", "independent", "rho"),
    ],
)
def test_tables_of_linear_maps(
    name: str, column: str, group: str, key: str, folder: Path, given: dict[str, Any]
) -> None:
    rows = [r for r in read(folder, f"mlp-one-{name}") if r["pair"] == group]
    expected = [cell(value) for p in numbers_of(given, group) for value in p[key]]
    assert [r[column] for r in rows] == expected
    assert any(expected)


def test_tables_of_curves_quantiles_ranks_and_spectra(folder: Path, given: dict[str, Any]) -> None:
    linked = numbers_of(given, "linked")
    errors = [r for r in read(folder, "mlp-one-error") if r["pair"] == "linked"]
    assert [r["mean"] for r in errors] == [cell(v) for p in linked for v in p["error"]["mean"]]
    sigma = [r for r in read(folder, "mlp-one-additivity") if r["pair"] == "linked"]
    of = [q for p in linked for layer in p["dist_sigma"]["quantiles"][:-1] for q in layer]
    assert [r["Dist σ"] for r in sigma] == [cell(v) for v in of]
    ranks = read(folder, "mlp-one-stable-rank")
    (training,) = numbers_of(given, "training")
    end = [r["stable rank"] for r in ranks if r["when"] == "end"]
    assert end == [cell(v[0]) for v in training["stable_rank"]]
    spectra = read(folder, "mlp-one-weights")
    values = given["numbers"]["mlp-one"]["singular values of W, mode A"]["fc2.weight"]
    assert [r["singular value"] for r in spectra if r["layer"] == "fc2.weight"] == list(
        map(str, values)
    )


def test_heights_of_bars_are_means_over_pairs(folder: Path, given: dict[str, Any]) -> None:
    """The drawing itself: bars of Dist_com, in pixels, are proportional to the numbers."""
    text = (folder / "figures" / "mlp-one-commutativity-independent.svg").read_text()
    bars = [
        [float(y) for y in re.findall(r"[ML] [\d.]+ ([\d.]+)", path)]
        for path in re.findall(
            r'<path d="([^"]*)"\s+clip-path="[^"]*"\s+style="fill: var\(--linked\)', text
        )
    ]
    heights = [max(ys) - min(ys) for ys in bars]
    linked = numbers_of(given, "linked")
    means = [sum(p["dist_com"][i] for p in linked) / len(linked) for i in range(1, len(LAYERS))]
    assert len(heights) == len(means)
    for height, mean in zip(heights, means):
        assert height / sum(heights) == pytest.approx(mean / sum(means), abs=0.03)


def test_only_figures_of_what_ran(tmp_path: Path) -> None:
    given = results(tmp_path, "mlp")
    given["settings"][0]["pairs"] = [
        p for p in given["settings"][0]["pairs"] if p["pair"] == "linked"
    ]
    given["numbers"] = {"alone": {"singular values of H, mode A": {"fc1": [3.0, 2.0, 1.0]}}}
    path = write_page(given, tmp_path)
    names = {p.stem for p in (tmp_path / "figures").glob("*.svg")}
    assert {"mlp-cosine", "mlp-coef", "mlp-error", "alone-features", "llfc"} <= names
    assert not names & {"mlp-co-occurrence", "mlp-additivity", "mlp-rho", "mlp-stable-rank"}
    assert "alone" in Parsed(path.read_text(encoding="utf-8")).text


def test_a_setting_measured_at_the_middle_alone_is_drawn(tmp_path: Path) -> None:
    given = results(tmp_path, "mlp")
    for p in given["settings"][0]["pairs"]:
        at = [p["alphas"].index(alpha) for alpha in (0.0, 0.5, 1.0)]
        p["alphas"] = [0.0, 0.5, 1.0]
        for key in ("error", "loss"):
            p[key] = {what: [values[k] for k in at] for what, values in p[key].items()}
        for key in ("one_minus_cos", "coef"):
            p[key] = {
                what: [[of_layer[k] for k in at] for of_layer in values]
                for what, values in p[key].items()
            }
    write_page(given, tmp_path)
    for name in ("mlp-cosine", "mlp-coef"):
        assert {r["alpha"] for r in read(tmp_path, name)} <= {"0.5", "A,B"}
        drawn = (tmp_path / "figures" / f"{name}.svg").read_text(encoding="utf-8")
        assert "α = ½" in drawn
        assert "α = ¼" not in drawn


def test_undefined_numbers_are_left_out_of_drawings_and_empty_in_tables(tmp_path: Path) -> None:
    given = results(tmp_path, "mlp")
    for p in given["settings"][0]["pairs"]:
        p["one_minus_cos_ab"]["mean"][1] = p["one_minus_cos_ab"]["std"][1] = None
        p["dist_com"][2] = p["rho"][2] = None
        p["dist_sigma"]["quantiles"][1] = [None] * len(p["dist_sigma"]["at"])
    given["verdicts"][0].update(value=None, low=None, high=None)
    page = Parsed(write_page(given, tmp_path).read_text(encoding="utf-8"))
    assert "undefined" in page.text
    rows = [r for r in read(tmp_path, "mlp-rho") if r["layer"] == "fc3"]
    assert {r["value"] for r in rows} == {""}
    assert not re.search(
        r"\bnan\b", "".join(p.read_text() for p in (tmp_path / "figures").iterdir())
    )


def test_names_that_look_alike_are_not_mixed_up() -> None:
    numbers = {"error barrier by width, percentage points": {"mlp (8,)": [2.0, 3.0]}}
    names = ("m l", "m_l", "m/l", "../m_l", "m" * 300, "m" * 301, "")
    made = [figures(SettingResults(name, "quick", {}, numbers))[0].id for name in names]
    assert len(set(made)) == len(names)
    assert all(len(ident) < 100 for ident in made)


def test_singular_values_keep_the_order_of_the_layers(tmp_path: Path) -> None:
    given = results(tmp_path, "mlp")
    spectra = given["numbers"]["mlp"]["singular values of W, mode A"]
    given["numbers"]["mlp"]["singular values of W, mode A"] = dict(sorted(spectra.items())[::-1])
    (setting,) = settings_of(given)
    (drawn,) = [f for f in figures(setting) if f.id == "mlp-weights"]
    order = list(dict.fromkeys(row[0] for row in drawn.rows))
    assert order == [f"{layer}.weight" for layer in LAYERS]


# ---- small words ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("the test error", "The test error."),
        ("ρ is below 1", "ρ is below 1."),
        ("E[1 − cosine] is 0", "E[1 − cosine] is 0."),
        ("done.", "Done."),
        ("", "."),
    ],
)
def test_sentences(text: str, told: str) -> None:
    assert sentence(text) == told


@pytest.mark.parametrize(
    ("value", "low", "high", "places", "over"),
    [
        (0.5, 0.25, 0.75, (0.25, 0.125, 0.375), False),
        (1.0, 1.0, 1.0, (0.5, 0.5, 0.5), False),
        (3.0, 0.5, 9.0, (1.0, 0.25, 1.0), True),
        (-1.0, -2.0, 0.0, (0.0, 0.0, 0.0), False),
    ],
)
def test_gauge(
    value: float, low: float, high: float, places: tuple[float, ...], over: bool
) -> None:
    found = gauge({"bound": 1.0, "value": value, "low": low, "high": high})
    assert (found["value"], found["low"], found["high"]) == places
    assert found["over"] is over
    assert found["defined"]
