"""The files of deploy/, checked by the programs that read them where these are installed."""

import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"


def needs(program, package):
    return pytest.mark.skipif(shutil.which(program) is None, reason=f"needs {program} (Debian package {package})")


def run(*command):
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    return done.returncode, done.stdout + done.stderr


def test_unit_stops_the_service_and_not_its_drivers():
    unit = configparser.ConfigParser(strict=False, interpolation=None)
    unit.optionxform = str
    unit.read(DEPLOY / "tune-hpc.service")
    service = unit["Service"]
    assert service["KillMode"] == "process"
    assert service["Restart"] == "on-failure"
    assert service["UMask"] == "0077"
    assert 10 < int(service["TimeoutStopSec"]) <= 20
    # Each would remove files or shared memory of drivers that outlive a restart.
    assert not {"PrivateTmp", "DynamicUser", "RemoveIPC", "RuntimeDirectory"} & set(service)


@needs("systemd-analyze", "systemd")
def test_systemd_accepts_the_unit(tmp_path):
    # systemd also checks that the program exists.
    text = (DEPLOY / "tune-hpc.service").read_text().replace("/opt/tune-hpc/.venv/bin/tune-hpc", sys.executable)
    (tmp_path / "tune-hpc.service").write_text(text)
    assert run("systemd-analyze", "verify", "--man=no", str(tmp_path / "tune-hpc.service")) == (0, "")


@needs("nginx", "nginx-light")
@needs("openssl", "openssl")
def test_nginx_accepts_the_proxy(tmp_path):
    key, certificate = tmp_path / "privkey.pem", tmp_path / "fullchain.pem"
    code, output = run(
        "openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=tune.example.org",
        "-keyout", str(key), "-out", str(certificate),
    )  # fmt: skip
    assert code == 0, output
    site = (DEPLOY / "nginx.conf").read_text().replace("/etc/ssl/tune-hpc", str(tmp_path))
    # Ports above 1023 need no privileges.
    site = re.sub(r"\b(listen (?:\[::\]:)?)(80|443)\b", r"\g<1>2\2", site)
    (tmp_path / "nginx.conf").write_text(
        f"pid {tmp_path}/pid;\nerror_log {tmp_path}/log;\nevents {{}}\nhttp {{\naccess_log off;\n{site}\n}}\n"
    )
    code, output = run("nginx", "-t", "-p", str(tmp_path), "-c", str(tmp_path / "nginx.conf"))
    assert code == 0, output


def test_ray_job_resumes_on_shared_storage():
    claim, job = yaml.safe_load_all((DEPLOY / "rayjob.yaml").read_text())
    assert (claim["kind"], claim["spec"]["accessModes"]) == ("PersistentVolumeClaim", ["ReadWriteMany"])
    assert (job["apiVersion"], job["kind"]) == ("ray.io/v1", "RayJob")
    assert {"--resume", "--force", "--address"} <= set(job["spec"]["entrypoint"].split())
    cluster = job["spec"]["rayClusterSpec"]
    assert f"ray=={cluster['rayVersion']}" in (ROOT / "constraints.txt").read_text().splitlines()
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        assert pod["volumes"][0]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        assert pod["containers"][0]["volumeMounts"] == [{"name": pod["volumes"][0]["name"], "mountPath": "/shared"}]
        assert pod["containers"][0]["lifecycle"]["preStop"]


def test_image_is_pinned_and_its_last_user_is_not_root():
    text = re.sub(r"^#.*\n", "", (DEPLOY / "Dockerfile").read_text(), flags=re.MULTILINE).replace("\\\n", " ")
    steps = [line.split() for line in text.splitlines() if line and not line.startswith(" ")]
    (image,) = [step[1] for step in steps if step[0] == "FROM"]
    assert ":" in image
    assert "latest" not in text
    assert [step[1] for step in steps if step[0] == "USER"][-1] not in ("root", "0")
    included = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    sources = {name for step in steps if step[0] == "COPY" for name in step[1:-1] if not name.startswith("--")}
    assert sources == included
    assert [name for name in sources if not (ROOT / name).exists()] == []
