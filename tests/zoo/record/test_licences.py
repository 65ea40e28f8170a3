"""Licences: the Hub's keys and SPDX ids are known, texts are recognised, and parents' terms are held against children."""

from __future__ import annotations

from importlib.metadata import distributions
from pathlib import Path

import pytest

from regraft.zoo.record import Licence, forbids, read_record
from regraft.zoo.record.licences import all_terms, in_text, recognised, terms_of
from regraft.zoo.record.risks import licence_risks

# Every key of https://huggingface.co/docs/hub/repositories-licenses.
HUB = """apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m afl-3.0
artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0
cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0
cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0 cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0
eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl
apple-ascl apple-amlr mpl-2.0 odc-by odbl openmdw-1.0 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr
deepfloyd-if-license fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma
unknown other""".split()  # noqa: SIM905  a table


@pytest.mark.parametrize("key", HUB)
def test_every_key_of_the_hub_is_known(key: str) -> None:
    assert recognised(key) in all_terms()
    assert recognised(key.upper()) == recognised(key)


@pytest.mark.parametrize(
    ("spelling", "expected"),
    [("Apache License 2.0", "Apache-2.0"), ("apache 2", "Apache-2.0"), ("Apache-2.0", "Apache-2.0"), ("MIT License", "MIT"),
     ("CC BY 4.0", "CC-BY-4.0"), ("CreativeML OpenRAIL-M", "creativeml-openrail-m"), ("gpl-3.0-plus", "GPL-3.0-or-later"),
     ("GPL-3.0", "GPL-3.0-only"), ("bsd-new", "BSD-3-Clause"), ("Llama 3.1 Community License", "llama3.1"), ("my own", None)],
)  # fmt: skip
def test_spellings(spelling: str, expected: str | None) -> None:
    assert recognised(spelling) == expected


def test_the_table_names_only_licences_that_it_has() -> None:
    terms = all_terms()
    for one in terms.values():
        assert one.children | one.forbidden <= terms.keys(), one.id
        assert one.part_of is None or one.part_of in terms, one.id


def test_texts_of_installed_packages_are_recognised_as_what_they_state() -> None:
    """Packages state their licence in SPDX and carry its text: two sources that know nothing of ours."""
    found = 0
    for package in distributions():
        stated = (package.metadata.get("License-Expression") or "").strip()
        names = [
            file
            for file in package.files or ()
            if Path(str(file)).name.upper() in ("LICENSE", "LICENSE.TXT", "LICENSE.MD")
        ]
        if stated not in ("MIT", "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC") or len(names) != 1:
            continue
        path = Path(str(package.locate_file(names[0])))
        if path.is_file():
            assert in_text(path.read_text(errors="replace")) in (stated, None), package.metadata["Name"]
            found += in_text(path.read_text(errors="replace")) == stated
    assert found >= 5


@pytest.mark.parametrize(
    ("file", "expected"),
    [("Apache-2.0", "Apache-2.0"), ("GPL-2", "GPL-2.0-only"), ("GPL-3", "GPL-3.0-only"), ("LGPL-2.1", "LGPL-2.1-only"),
     ("LGPL-3", "LGPL-3.0-only"), ("MPL-2.0", "MPL-2.0"), ("CC0-1.0", "CC0-1.0"), ("GFDL-1.3", None)],
)  # fmt: skip
def test_texts_of_the_system(file: str, expected: str | None) -> None:
    path = Path("/usr/share/common-licenses") / file
    if not path.is_file():
        pytest.skip("The system keeps no licence texts.")
    assert in_text(path.read_text()) == expected


@pytest.mark.parametrize(
    ("head", "expected"),
    [("Attribution 4.0 International\n=====", "CC-BY-4.0"), ("Attribution-ShareAlike 4.0 International", "CC-BY-SA-4.0"),
     ("Creative Commons Attribution-NonCommercial 4.0 International", "CC-BY-NC-4.0"),
     ("Attribution-NonCommercial-ShareAlike 4.0 International", "CC-BY-NC-SA-4.0"),
     ("Attribution-NonCommercial-NoDerivatives 4.0 International", "CC-BY-NC-ND-4.0"),
     ("GNU AFFERO GENERAL PUBLIC LICENSE\nVersion 3, 19 November 2007", "AGPL-3.0-only"),
     ("LLAMA 3.1 COMMUNITY LICENSE AGREEMENT\nLlama 3.1 Version", "llama3.1"),
     ("META LLAMA 3 COMMUNITY LICENSE AGREEMENT", "llama3"),
     ("# Gemma Terms of Use", "gemma"), ("CreativeML Open RAIL-M\ndated August 22, 2022", "creativeml-openrail-m"),
     ("CreativeML Open RAIL++-M License", "openrail++"), ("Do as you like.", None)],
)  # fmt: skip
def test_heads_of_texts(head: str, expected: str | None) -> None:
    assert in_text(head) == expected


@pytest.mark.parametrize(
    ("parent", "child", "word"),
    [
        ("gpl-3.0", "mit", "must be under GPL-3.0-only"),
        ("gpl-3.0", "apache-2.0", "must be under"),
        ("agpl-3.0", "gpl-3.0", "must be under"),
        ("lgpl-3.0", "mit", "must be under"),
        ("mpl-2.0", "mit", "must be under"),
        ("cc-by-sa-4.0", "cc-by-4.0", "must be under"),
        ("cc-by-nc-4.0", "apache-2.0", "commercial"),
        ("cc-by-nc-sa-4.0", "mit", "commercial"),
        ("cc-by-nc-sa-4.0", "cc-by-nc-4.0", "must be under"),
        ("cc-by-nd-4.0", "cc-by-nd-4.0", "no changed version"),
        ("bigscience-bloom-rail-1.0", "apache-2.0", "restrictions of use"),
        ("creativeml-openrail-m", "mit", "restrictions of use"),
        ("llama2", "apache-2.0", "must be under llama2"),
        ("llama3.1", "mit", "must be under"),
        ("gemma", "apache-2.0", "must be under"),
        ("apache-2.0", "gpl-2.0", "patent"),
        ("gpl-3.0", None, "states no licence"),
        ("apache-2.0, cc-by-nc-4.0", "mit", "commercial"),
    ],
)
def test_what_is_forbidden(parent: str, child: str | None, word: str) -> None:
    reason = forbids(parent, child)
    assert reason is not None
    assert word in reason


@pytest.mark.parametrize(
    ("parent", "child"),
    [("mit", "apache-2.0"), ("apache-2.0", "mit"), ("apache-2.0", "gpl-3.0"), ("apache-2.0", "cc-by-nc-4.0"), ("mit", None),
     ("gpl-3.0", "gpl-3.0"), ("gpl-3.0", "agpl-3.0"), ("cc-by-sa-3.0", "cc-by-sa-4.0"), ("cc-by-nc-4.0", "cc-by-nc-sa-4.0"),
     ("creativeml-openrail-m", "bigscience-openrail-m"), ("llama3.1", "llama3.1"), ("gemma", "other"), ("gemma", "my-own-terms"),
     ("other", "mit"), (None, "mit"), ("bsd", "bsd-3-clause"), ("gpl", "gpl-3.0")],
)  # fmt: skip
def test_what_is_not(parent: str | None, child: str | None) -> None:
    assert forbids(parent, child) is None


@pytest.mark.parametrize("key", [key for key in HUB if (found := terms_of(key)) and found.derivatives is not False])
def test_a_child_may_always_keep_its_parents_licence(key: str) -> None:
    assert forbids(key, key) is None


MIT = """MIT License

Copyright (c) 2024 Somebody

Permission is hereby granted, free of charge, to any person obtaining a copy of this software.
The above copyright notice and this permission notice shall be included in all copies."""


def folder_with(path: Path, card: str | None, file: str | None, config: str = "{}") -> Path:
    (path / "config.json").write_text(config)
    if card is not None:
        (path / "README.md").write_text(f"---\n{card}\n---\n")
    if file is not None:
        (path / "LICENSE").write_text(file)
    return path


def codes(folder: Path) -> set[str]:
    return {risk.code for risk in read_record(folder).risks if risk.code.startswith("licence")}


def test_card_and_file_that_agree(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "license: mit", MIT)
    assert read_record(folder).licence == Licence("MIT", "MIT", None, "MIT", False)
    assert codes(folder) == set()


def test_card_and_file_that_differ(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, "license: apache-2.0", MIT)
    assert read_record(folder).licence == Licence("Apache-2.0", "Apache-2.0", None, "MIT", True)
    assert codes(folder) == {"licence-conflict"}


def test_a_file_alone(tmp_path: Path) -> None:
    folder = folder_with(tmp_path, None, MIT)
    assert read_record(folder).licence == Licence("MIT", None, None, "MIT", False)


def test_an_owners_own_licence_and_none_at_all(tmp_path: Path) -> None:
    own = folder_with(tmp_path, "license: other\nlicense_name: my-terms", "These are my terms.")
    assert read_record(own).licence.stated == "my-terms"
    assert codes(own) == {"licence-unknown"}
    (own / "LICENSE").write_text(MIT)
    assert (read_record(own).licence.stated, read_record(own).licence.conflict) == ("MIT", False)
    (own / "LICENSE").unlink()
    (own / "README.md").unlink()
    assert read_record(own).licence.stated is None
    assert codes(own) == {"licence-unknown"}


def test_a_licence_against_its_parents(tmp_path: Path) -> None:
    record = read_record(folder_with(tmp_path, "license: mit\nbase_model: [a/gpl, a/free]", None))
    found = licence_risks(record, {"a/gpl": "gpl-3.0", "a/free": "mit"})
    assert [(risk.code, risk.where) for risk in found] == [("licence-forbidden", "a/gpl")]
