"""Every requirement has a wheel for aarch64 Linux (asked of pip's index, nothing is downloaded)."""

import json
import re
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from processes import ran

GLIBC = ("2_17", "2_24", "2_26", "2_27", "2_28", "2_31", "2_34", "2_35")  # up to that of Ubuntu 22.04
PYTHONS = ("3.9", "3.10", "3.11", "3.12", "3.13", "3.14")
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")


def wanted(repo, python):
    """The requirements that hold for that Python on aarch64, without their markers."""
    Requirement = pytest.importorskip("packaging.requirements").Requirement
    lines = [line.split("#")[0].strip() for line in (repo / "requirements.txt").read_text().splitlines()]
    target = {"python_version": python, "python_full_version": python + ".0", "platform_machine": "aarch64",
              "sys_platform": "linux", "platform_system": "Linux"}
    found = [one for one in map(Requirement, filter(None, lines)) if one.marker is None or one.marker.evaluate(target)]
    return [str(one).split(";")[0] for one in found]


def wheels(requirements, python, folder):
    """{package: file name of its wheel} that pip would take for aarch64, dependencies apart; what it says if it takes none."""
    places = [word for version in (*GLIBC, "2014") for word in ("--platform", "manylinux%s_aarch64" % version.replace("2_", "_2_"))]
    done = ran(*PIP, "--retries", 2, "install", "--dry-run", "--ignore-installed", "--quiet", "--report", "-", "--no-deps",
               "--only-binary=:all:", "--python-version", python, "--implementation", "cp", "--target", folder, *places, *requirements,
               cwd=folder)
    return done.stderr if done.returncode else {entry["metadata"]["name"]: entry["download_info"]["url"].split("/")[-1]
                                                for entry in json.loads(done.stdout)["install"]}


@pytest.mark.network
def test_every_requirement_has_a_wheel_for_aarch64(repo, tmp_path):
    have = ran(*PIP, "--version", cwd=tmp_path).stdout
    if int(re.match(r"pip (\d+)|", have).group(1) or 0) < 23:
        pytest.skip("pip cannot report without installing: " + have)
    asked = {python: wanted(repo, python) for python in PYTHONS}
    with ThreadPoolExecutor(len(PYTHONS)) as pool:
        answers = dict(zip(PYTHONS, pool.map(lambda python: wheels(asked[python], python, tmp_path), PYTHONS)))
    if all("Retrying" in found for found in answers.values()):
        pytest.skip("NOT RUN: pip's index does not answer: %.200s" % answers[PYTHONS[0]])
    for python, found in answers.items():
        assert isinstance(found, dict), "Python %s on aarch64: %s" % (python, found)
        assert len(found) == len(asked[python]) and {"numpy", "onnx", "onnxruntime", "torch"} <= set(found), "Python %s" % python
        assert all(re.search(r"aarch64\.whl$|-any\.whl$", name) for name in found.values()), found
