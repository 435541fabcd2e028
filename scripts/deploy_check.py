"""Holds the files in deploy/ against what they must agree with: the schemas of Kubernetes, Dockerfile, settings, routes and each
other.

Started by scripts/deploy-check.sh, which provides PyYAML and the schemas.
"""

import pathlib
import re
import sys

import kubernetes_validate
import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent
# The oldest and the newest version that the package has schemas for, so that nothing here is too new or gone.
KUBERNETES = ["1.25", "1.37"]
FAILURES = []


def expect(holds, message):
    if not holds:
        FAILURES.append(message)


def seconds(text):
    number, unit = re.fullmatch(r"(\d+)(ms|s|m|h)", text).groups()
    return int(number) * {"ms": 0.001, "s": 1, "m": 60, "h": 3600}[unit]


def settings():
    """Variables of docs/configuration.md, with their defaults."""
    text = (ROOT / "docs/configuration.md").read_text()
    return dict(re.findall(r"· `(NDSERVE_\w+)` · default: `?([^`\n]*)", text))


def main():
    dockerfile = (ROOT / "Dockerfile").read_text()
    user, group = map(int, re.search(r"^USER (\d+):(\d+)$", dockerfile, re.M).groups())
    port, grpc = map(int, re.search(r"^EXPOSE (\d+) (\d+)$", dockerfile, re.M).groups())
    version = re.search(r'^version = "(.+)"$', (ROOT / "Cargo.toml").read_text(), re.M).group(1)
    known = settings()
    routes = "".join(path.read_text() for path in (ROOT / "src/api").rglob("*.rs"))
    expect(known, "docs/configuration.md lists no variable")
    image_env = dict(pair.split("=", 1) for line in re.findall(r"^ENV (.*)$", dockerfile, re.M) for pair in line.split())
    for name in image_env:
        expect(name in known, f"Dockerfile: there is no setting {name}")
    for name, exposed in [("NDSERVE_LISTEN", port), ("NDSERVE_GRPC_LISTEN", grpc)]:
        expect(image_env.get(name, "").endswith(f":{exposed}"), f"Dockerfile: EXPOSE is not the port of {name}")

    compose = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())["services"]["ndserve"]
    expect(compose["image"] == f"ndserve:{version}", f"compose: the image is not of version {version}")
    mapped = [int(mapping.split(":")[-1]) for mapping in compose["ports"]]
    expect(mapped == [port, grpc], f"compose: the ports are not {port} and {grpc}")
    expect(compose["read_only"] is True and compose["cap_drop"] == ["ALL"], "compose: not read-only, or with capabilities")
    environment = compose.get("environment", {})
    drain(environment, known, seconds(compose["stop_grace_period"]), "compose")

    documents = list(yaml.safe_load_all((ROOT / "deploy/kubernetes/ndserve.yaml").read_text()))
    for document in documents:
        schema(document, f"kubernetes: {document['kind']}")
    kinds = {document["kind"]: document for document in documents}
    expect(set(kinds) == {"Deployment", "Service", "PodDisruptionBudget"}, f"kubernetes: the kinds are {sorted(kinds)}")
    deployment = kinds["Deployment"]["spec"]
    pod = deployment["template"]["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    for place, selector in [
        ("Deployment", deployment["selector"]["matchLabels"]),
        ("Service", kinds["Service"]["spec"]["selector"]),
        ("PodDisruptionBudget", kinds["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"]),
    ]:
        expect(selector.items() <= labels.items(), f"kubernetes: the selector of the {place} does not match the pods")
    context = pod["securityContext"]
    expect((context["runAsUser"], context["runAsGroup"]) == (user, group), f"kubernetes: the user is not {user}:{group}")
    expect(context["runAsNonRoot"] is True, "kubernetes: runAsNonRoot")
    (container,) = pod["containers"]
    expect(container["image"] == f"ndserve:{version}", f"kubernetes: the image is not of version {version}")
    expect(container["securityContext"]["readOnlyRootFilesystem"] is True, "kubernetes: readOnlyRootFilesystem")
    ports = {entry["name"]: entry["containerPort"] for entry in container["ports"]}
    expect(ports == {"http": port, "grpc": grpc}, f"kubernetes: the ports are not {port} and {grpc}")
    targets = [entry["targetPort"] for entry in kinds["Service"]["spec"]["ports"]]
    expect(sorted(targets) == sorted(ports), "kubernetes: the service's ports are not those of the container")
    expect("limits" in container["resources"], "kubernetes: no limits")
    for probe in ["startupProbe", "readinessProbe", "livenessProbe"]:
        ask = container[probe]["httpGet"]
        expect(ask["port"] in ports, f"kubernetes: {probe} asks a port that is not there")
        expect(f'"{ask["path"]}"' in routes, f"kubernetes: {probe} asks {ask['path']}, which no route answers")
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    drain(environment, known, pod["terminationGracePeriodSeconds"], "kubernetes")
    kserve(known, routes, version, port, grpc)

    for failure in FAILURES:
        print(f"deploy: FAILED: {failure}", file=sys.stderr)
    if not FAILURES:
        print(f"deploy: compose.yaml, {len(documents)} Kubernetes objects and KServe's agree with schemas, Dockerfile, settings and routes")
    return 1 if FAILURES else 0


def schema(document, place):
    """What Kubernetes itself would refuse, unknown fields included."""
    for version in KUBERNETES:
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            expect(False, f"{place}, version {version}: {error.message} at {'.'.join(map(str, error.path))}")


def kserve(known, routes, version, port, grpc):
    """KServe's own kinds have no schema in the package: their containers are checked as a pod's, the rest by rules."""
    runtime = yaml.safe_load((ROOT / "deploy/kserve/servingruntime.yaml").read_text())
    expect(runtime["kind"] == "ClusterServingRuntime", "kserve: the kind is not ClusterServingRuntime")
    spec = runtime["spec"]
    expect(not set(spec) - {"annotations", "supportedModelFormats", "protocolVersions", "containers"}, f"kserve: {sorted(spec)}")
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "ndserve"}, "spec": {"containers": spec["containers"]}}
    schema(pod, "kserve: containers")
    formats = {entry["name"]: entry for entry in spec["supportedModelFormats"]}
    expect(formats["onnx"]["autoSelect"] is True and formats["onnx"]["version"] == "1", "kserve: onnx is not selected by itself")
    expect(spec["protocolVersions"] == ["v1", "v2", "grpc-v2"], "kserve: protocolVersions")
    expect(spec["annotations"]["prometheus.kserve.io/port"] == str(port), f"kserve: metrics are not at port {port}")
    (container,) = spec["containers"]
    expect(container["name"] == "kserve-container", "kserve: the container's name is not the one that KServe fills in")
    expect(container["image"] == f"ndserve:{version}", f"kserve: the image is not of version {version}")
    expect("ports" not in container, "kserve: Knative takes one port, which the InferenceService names")
    command, *flags = container["args"]
    given = dict(flag.removeprefix("--").split("=", 1) for flag in flags)
    expect(command == "serve", "kserve: the command is not `serve`")
    for flag in given:
        expect("NDSERVE_" + flag.upper().replace("-", "_") in known, f"kserve: there is no setting --{flag}")
    wanted = {"models": "/mnt/models", "model-name": "{{.Name}}", "listen": f"0.0.0.0:{port}", "grpc-listen": f"0.0.0.0:{grpc}"}
    expect(given == wanted, f"kserve: the flags are {given}")
    for probe in ["readinessProbe", "livenessProbe"]:
        ask = container[probe]["httpGet"]
        expect(ask["port"] == port and f'"{ask["path"]}"' in routes, f"kserve: {probe} asks {ask}, which no route answers")
    for service in yaml.safe_load_all((ROOT / "deploy/kserve/inferenceservice.yaml").read_text()):
        model = service["spec"]["predictor"]["model"]
        expect(model["runtime"] == runtime["metadata"]["name"], "kserve: an InferenceService names another runtime")
        expect(model["modelFormat"]["name"] in formats, "kserve: an InferenceService has a format that the runtime does not have")
        expect(model["protocolVersion"] in spec["protocolVersions"], "kserve: an InferenceService speaks a protocol that the runtime does not")
        ports = [(entry["name"], entry["containerPort"]) for entry in model.get("ports", [])]
        expect(ports == ([("h2c", grpc)] if model["protocolVersion"] == "grpc-v2" else []), f"kserve: the ports are {ports}")


def drain(environment, known, grace, place):
    """Every variable is a setting, and the supervisor waits longer than the server drains."""
    for name in environment:
        expect(name in known, f"{place}: there is no setting {name}")
    total = sum(seconds(environment.get(name, known[name])) for name in ["NDSERVE_DRAIN_DELAY", "NDSERVE_DRAIN_TIMEOUT"])
    expect(total < grace, f"{place}: {grace} s of grace are not more than {total} s of draining")


sys.exit(main())
