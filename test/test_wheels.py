"""Every requirement has a wheel for aarch64 Linux (asked of pip's index, nothing is downloaded)."""

import json
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

GLIBC = ("2_17", "2_24", "2_26", "2_27", "2_28", "2_31", "2_34", "2_35")  # up to that of Ubuntu 22.04
PYTHONS = ("3.9", "3.10", "3.11", "3.12", "3.13", "3.14")


def wanted(repo, python):
    """The requirements that hold for that Python on aarch64, without their markers."""
    Requirement = pytest.importorskip("packaging.requirements").Requirement
    found = []
    for line in (repo / "requirements.txt").read_text().splitlines():
        text = line.split("#")[0].strip()
        if text:
            requirement = Requirement(text)
            target = {"python_version": python, "python_full_version": python + ".0", "platform_machine": "aarch64",
                      "sys_platform": "linux", "platform_system": "Linux"}
            if requirement.marker is None or requirement.marker.evaluate(target):
                requirement.marker = None
                found.append(str(requirement))
    return found


def wheels(requirements, python, folder):
    """{package: file name of its wheel} that pip would take for aarch64, dependencies apart."""
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--retries", "2", "install", "--dry-run", "--ignore-installed",
               "--quiet", "--report", "-", "--no-deps", "--only-binary=:all:", "--python-version", python,
               "--implementation", "cp", "--target", str(folder)]
    for version in GLIBC:
        command += ["--platform", "manylinux_%s_aarch64" % version]
    command += ["--platform", "manylinux2014_aarch64"]
    done = subprocess.run(command + requirements, stdout=subprocess.PIPE, stderr=subprocess.PIPE, universal_newlines=True)
    if done.returncode:
        return done.stderr
    return {entry["metadata"]["name"]: entry["download_info"]["url"].split("/")[-1]
            for entry in json.loads(done.stdout)["install"]}


@pytest.mark.network
def test_every_requirement_has_a_wheel_for_aarch64(repo, tmp_path):
    have = subprocess.run([sys.executable, "-m", "pip", "--version"], stdout=subprocess.PIPE, universal_newlines=True).stdout
    if int(re.match(r"pip (\d+)|", have).group(1) or 0) < 23:
        pytest.skip("pip cannot report without installing: " + have)
    asked = {python: wanted(repo, python) for python in PYTHONS}
    with ThreadPoolExecutor(len(PYTHONS)) as pool:
        answers = dict(zip(PYTHONS, pool.map(lambda python: wheels(asked[python], python, tmp_path), PYTHONS)))
    if all("Retrying" in found for found in answers.values()):
        pytest.skip("NOT RUN: pip's index does not answer: %.200s" % answers[PYTHONS[0]])
    for python, found in answers.items():
        assert isinstance(found, dict), "Python %s on aarch64: %s" % (python, found)
        assert len(found) == len(asked[python])
        assert all(re.search(r"aarch64\.whl$|-any\.whl$", name) for name in found.values()), found
        for needed in ("numpy", "onnx", "onnxruntime", "torch"):
            assert needed in found, "Python %s" % python
