import re
from pathlib import Path

import pytest

from autoq.api.studies import write_report
from autoq.config.policy import uniform
from autoq.config.space_file import bundled_space, load_space
from autoq.config.spec import Question, Replication, StudySpec, TrialResult, TrialSpec
from autoq.config.structure import Structure
from autoq.errors import StudyError
from autoq.report.build import build_report
from autoq.study.results import document
from autoq.study.study import Study, space_facts
from autoq.system.files import append_line
from tests.conftest import made_up
from tests.report.test_attribution import EVERY, structure, table


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("report")
    facts = space_facts("srgan", "openvino-cpu")
    space = load_space(bundled_space("srgan"), facts)
    spec = StudySpec(
        trial=TrialSpec(model="srgan", scale=4), space=space.to_dict(), objectives=("size", "latency", "psnr"), budget=3
    )
    environment = {"command": "autoq <script>alert(1)</script>", "python": "3.11", "machine": "a & b", "versions": {"torch": "2"}}
    study = Study.create(folder / "evil", spec, environment)
    for name, bits, size, ms, psnr in (("float", "32/32/32", 4e6, 100.0, 30.0), ("8/8/8", "8/8/8", 1e6, 40.0, 29.9)):
        found = TrialResult(state="complete", values={"size": size, "latency": ms, "psnr": psnr, "fidelity": 50.0}, seconds=2.0)
        study.add_baseline(name, uniform(bits, facts.stages), found, Structure())
    asked = study.ask()
    study.tell(
        asked.number,
        asked.policy,
        TrialResult(state="complete", values={"size": 5e5, "latency": 30.0, "psnr": 29.0, "fidelity": 40.0}, steps=1),
        Structure(),
    )
    asked = study.ask()
    study.tell(asked.number, asked.policy, TrialResult(state="failed", reason="<b>diverged</b>"), Structure())
    html, png = build_report(study, folder / "reports")
    assert png.stat().st_size > 10_000
    return html.read_text()


def test_the_page_needs_no_network(page: str) -> None:
    body = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert "http" not in body
    assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=", page)
    assert len(page) > 1_000_000, "Plotly is inside"


def test_what_a_study_says_is_escaped(page: str) -> None:
    assert "<script>alert(1)" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in page
    assert "&lt;b&gt;diverged&lt;/b&gt;" in page
    assert "a &amp; b" in page


def test_numbers_and_ratios(page: str) -> None:
    text = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert "<td>4.00x</td><td>2.50x</td>" in text  # 8/8/8: 4 MB over 1 MB, then 100 ms over 40
    assert "976.6" in text  # 1e6 bytes in KiB
    assert "trial 0" in text
    assert "29.900" in text


def test_the_page_says_where_the_time_goes(tmp_path: Path) -> None:
    """And of a point that is no faster than the float network, that it is none."""
    study = Study.create(
        tmp_path / "timed", of_srresnet(("size", "latency", "psnr")), {"command": "", "python": "", "machine": "", "versions": {}}
    )
    study.latency_path.write_text(table(EVERY).model_dump_json())
    points = {"float": ((False,) * 3, 100.0), "slow": ((True, False, False), 101.0), "mixed": ((True, True, False), 57.0)}
    for number, (name, (integers, ms)) in enumerate(points.items()):
        values = {"size": 100.0 - number, "latency": ms, "psnr": 30.0, "fidelity": 50.0}
        policy = uniform(f"{8 - number}/8/8", study.space.facts.stages)
        study.add_baseline(name, policy, TrialResult(state="complete", values=values), structure(integers, skip=False))
    page = shown(build_report(study, tmp_path)[0])
    section = page.partition("<h2>Latency</h2>")[2].partition("<h2>")[0]
    assert "Benchmark of 16 graph structures on " in section
    protocol = "32x24 input pixels, 2 threads, no other load. Latency is the median of at least 6 runs after 1 warm-up;"
    assert protocol in section
    assert "<td>57.00</td><td>[56.70, 57.40]</td><td>1.75x</td><td>55.00</td><td>1</td><td>+2.00</td>" in section
    assert '<td class="t">body</td><td class="t">none</td><td>36.00</td><td>44.00</td><td>40.00</td>' in section
    row = next(line for line in section.splitlines() if ">slow<" in line)
    assert "<td>0.99x</td>" in row


def test_the_page_says_what_holds_on_held_out_images(tmp_path: Path) -> None:
    """Of three points a search found, one is beaten on images that it did not see; another was trained again."""
    spec = of_srresnet(("size", "psnr")).model_copy(update={"replications": 2})
    study = Study.create(tmp_path / "held", spec, {"command": "", "python": "", "machine": "", "versions": {}})
    points = {"float": (8e6, 30.0, 28.0), "8/8/8": (2e6, 29.95, 27.0), "6/6/8": (1e6, 29.5, 27.5)}
    for name, (size, psnr, apart) in points.items():
        policy = uniform("32/32/32" if name == "float" else name, study.space.facts.stages)
        values = {"size": size, "psnr": psnr, "latency": size / 1e5, "fidelity": 50.0}
        found = TrialResult(state="complete", values=values, held_out={"psnr": apart}, seconds=9.0)
        study.add_baseline(name, policy, found, Structure())
    best = uniform("8/8/8", study.space.facts.stages)
    for seed, psnr in enumerate((29.8, 29.7), 1):
        result = TrialResult(state="complete", values={"psnr": psnr}, held_out={"psnr": 27.0 + seed / 10})
        append_line(study.replications_path, Replication(policy=best.hash, seed=seed, result=result))
    page = shown(build_report(study, tmp_path)[0])
    section = page.partition("<h2>Held-out validation</h2>")[2].partition("<h2>")[0]
    assert "On held-out images, 2 of 3 points stay on the front" in section
    assert "1 point was trained again with other seeds; at worst, psnr changed by -0.20 dB (8/8/8)" in section
    rows = {line.partition("</td>")[0].rpartition(">")[2]: line for line in section.splitlines() if line.startswith("<tr class")}
    assert list(rows) == ["6/6/8", "8/8/8", "float"]
    # Student's t of one degree of freedom is 12.706, of two 4.303
    assert "<td>29.950</td><td>27.100 [26.852, 27.348]</td><td>29.750 [29.115, 30.385]</td>" in rows["8/8/8"]
    assert '<td>2</td><td class="t">dominated on held-out images</td>' in rows["8/8/8"]
    assert "<td>29.500</td><td>27.500</td><td></td>" in rows["6/6/8"]
    assert '<td>none</td><td class="t"></td>' in rows["6/6/8"]
    cards = page.partition("<h2>Recommended points</h2>")[2].partition("<h2>")[0]
    assert "selected from the front's points with psnr_drop&lt;=0.1" in cards
    for rule, point, gains in (
        ("smallest", "8/8/8", "4.00x smaller, 4.00x faster"),
        ("fastest", "8/8/8", "4.00x smaller, 4.00x faster"),
        ("compromise", "6/6/8", "8.00x smaller, 8.00x faster"),
    ):
        assert f"<b>{gains}</b><span>{rule}: {point}, " in cards
        assert f"<code>autoq export held --pick {rule} -o {rule}</code>" in cards
    study.close()


def of_srresnet(objectives: tuple[str, ...]) -> StudySpec:
    space = load_space(bundled_space("srresnet"), space_facts("srresnet", "openvino-cpu"))
    return StudySpec(trial=TrialSpec(model="srresnet", scale=4), space=space.to_dict(), objectives=objectives)


def test_a_point_that_is_not_faster_says_so(tmp_path: Path) -> None:
    study = Study.create(
        tmp_path / "slow", of_srresnet(("size", "latency", "psnr")), {"command": "", "python": "", "machine": "", "versions": {}}
    )
    for name, size, ms in (("float", 100.0, 10.0), ("equal", 50.0, 10.0), ("fast", 60.0, 9.9)):
        values = {"size": size, "latency": ms, "psnr": 30.0, "fidelity": 50.0}
        policy = uniform("8/8/8", study.space.facts.stages)
        study.add_baseline(name, policy, TrialResult(state="complete", values=values), Structure())
    page = shown(build_report(study, tmp_path)[0])
    assert page.count("not faster than float") == 1
    assert "<td>2.00x</td><td>1.00x (not faster than float)</td>" in page
    entries = document("slow", study.spec, study.results(), 0.0)["front"]
    assert {entry["name"]: entry["faster_than_float"] for entry in entries} == {"equal": False, "fast": True}


def test_a_study_without_trials_has_a_report(tmp_path: Path) -> None:
    facts = space_facts("srresnet", "openvino-cpu")
    space = load_space(bundled_space("srresnet"), facts)
    spec = StudySpec(trial=TrialSpec(model="srresnet", scale=4), space=space.to_dict(), objectives=("size", "psnr"))
    study = Study.create(tmp_path / "empty", spec, {"command": "", "python": "", "machine": "", "versions": {}})
    html, _ = build_report(study, tmp_path)
    assert "0 trials" in html.read_text()


def test_two_studies_of_a_network_in_one_report(tmp_path: Path) -> None:
    """Fronts of two and one points against float: the volumes by hand, and who dominates whom."""
    facts = space_facts("srresnet", "openvino-cpu")
    space = load_space(bundled_space("srresnet"), facts)
    spec = StudySpec(trial=TrialSpec(model="srresnet", scale=4), space=space.to_dict(), objectives=("size", "psnr"))
    studies = {}
    for name, points in (("here", [(50.0, 30.0), (20.0, 28.0)]), ("<there>", [(60.0, 29.0), (10.0, 27.5)])):
        study = Study.create(tmp_path / name, spec, {"command": "", "python": "", "machine": "", "versions": {}})
        for number, (size, psnr) in enumerate([(100.0, 30.0), *points]):
            policy = uniform("32/32/32" if number == 0 else f"{8 - number}/8/8", facts.stages)
            values = {"size": size, "psnr": psnr, "latency": 1.0, "fidelity": 50.0}
            study.add_baseline(
                "float" if number == 0 else f"b{number}", policy, TrialResult(state="complete", values=values), Structure()
            )
        studies[name] = study
    write_report(studies["here"], tmp_path / "reports", studies["<there>"])
    page = (tmp_path / "reports" / "here.html").read_text()
    text = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    # within size 101 and 27 dB, axes divided by both; there, float is on the front, too
    here, there = (51 * 3 + 30 * 1) / (101 * 27), (91 * 0.5 + 41 * 1.5 + 1 * 1) / (101 * 27)
    assert f"hypervolume {here:.4f} in this study, {there:.4f} in &lt;there&gt;" in text
    assert "Compared with &lt;there&gt;" in text
    dominated = "0% of this front&#39;s points are dominated by &lt;there&gt;; 67% of its points are dominated by this study"
    assert dominated in text
    assert "<there>" not in page
    other = spec.model_copy(update={"objectives": ("size", "ssim")})
    odd = Study.create(tmp_path / "odd", other, {"command": "", "python": "", "machine": "", "versions": {}})
    with pytest.raises(StudyError, match="cannot be compared with 'here': objectives is size,ssim there and size,psnr here"):
        write_report(studies["here"], tmp_path / "reports", odd)


def test_what_a_study_was_asked_is_in_its_report(tmp_path: Path) -> None:
    space = load_space(bundled_space("srresnet"), space_facts("srresnet", "openvino-cpu"))
    spec = StudySpec(trial=TrialSpec(model="srresnet", scale=4), space=space.to_dict(), objectives=("size", "psnr"))
    study = Study.create(tmp_path / "asked", spec, {"command": "", "python": "", "machine": "", "versions": {}})
    assert "Stage sensitivity" not in shown(build_report(study, tmp_path)[0])
    for question in (Question(widths=(4, 8), threads=2), Question(metric="ssim", steps=3, widths=(8,))):
        study.add_answer(question, made_up(question, ("<b>body</b>", "ends & all")))
    page = shown(build_report(study, tmp_path)[0])
    section = page.partition("<h2>Stage sensitivity</h2>")[2].partition("<h2>")[0]
    assert "<b>body" not in page
    assert "<th>change in psnr (dB)</th>" in section
    row = "<td>4</td><td>-0.400</td><td>5.0</td><td>0.25</td>"
    assert f'<td class="t">&lt;b&gt;body&lt;/b&gt;</td>{row}' in section
    assert "Most sensitive: &lt;b&gt;body&lt;/b&gt; (-0.400 at 4 bits); least sensitive: ends &amp; all (-0.200)." in section
    assert "Stability of the ranking (rank correlation): 0.90 over images (95 % interval 0.50 to 1.00)." in section
    settings = (
        "without training, and all others stay float (float network: 30.000). Time saved is for 96x96 input pixels and 2 threads."
    )
    assert settings in section
    assert section.count("<table>") == 2
    assert "after 3 training steps" in section


def shown(page: Path) -> str:
    """A page without its scripts."""
    return re.sub(r"<script.*?</script>", "", page.read_text(), flags=re.DOTALL)
