from analyses import reproduction
from analyses.study import Verdict
from figures.records import RESULTS


def test_the_page_is_what_the_records_say():
    assert reproduction.PAGE.read_text() == reproduction.page()


def test_every_claim_has_a_row():
    claims = reproduction.claims()
    assert [claim["id"] for claim in claims] == [f"C{number:02d}" for number in range(1, 138)]
    errors = reproduction.errors()
    assert [error["id"] for error in errors] == [f"E{number:02d}" for number in range(1, 73)]
    page = reproduction.page()
    for entry in (*claims, *errors):
        assert f"\n| {entry['id']} |" in page


def test_studies_and_figures_are_pairs():
    from figures.__main__ import NAMES
    from figures.records import MADE_BY

    assert (
        set(NAMES) - set(MADE_BY)
        == set(reproduction.STUDIES)
        == {s.name for s in reproduction.studies()}
    )


def test_verdicts_name_claims_that_there_are(monkeypatch):
    known = {claim["id"] for claim in reproduction.claims()}
    assert set(reproduction.verdicts()) <= known
    told = {"C01": [("a_study", Verdict("C01", "does not hold", "5 | 6", "here"))]}
    monkeypatch.setattr(reproduction, "verdicts", lambda: told)
    page = reproduction.page()
    assert "137 claims: 0 holds, 0 holds only under, 1 does not hold, 136 not yet measured." in page
    # A bar inside a cell would end it.
    assert "| 5 ∣ 6 | here | ✘ does not hold | [a_study](data/results/a_study.json) |" in page


def test_records_are_of_full_configurations():
    from figures.records import read

    for study in reproduction.studies():
        if (RESULTS / f"{study.name}.json").exists():
            assert read(study.name)["kind"] == "full"
