"""Holds the files in deploy/ against what they must agree with: Dockerfile, settings, routes and each other.

Started by scripts/deploy-check.sh, which provides PyYAML.
"""

import pathlib
import re
import sys

import yaml

ROOT = pathlib.Path(__file__).resolve().parent.parent
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
    port = int(re.search(r"^EXPOSE (\d+)$", dockerfile, re.M).group(1))
    version = re.search(r'^version = "(.+)"$', (ROOT / "Cargo.toml").read_text(), re.M).group(1)
    known = settings()
    routes = "".join(path.read_text() for path in (ROOT / "src/api").rglob("*.rs"))
    expect(known, "docs/configuration.md lists no variable")
    image_env = dict(pair.split("=", 1) for line in re.findall(r"^ENV (.*)$", dockerfile, re.M) for pair in line.split())
    for name in image_env:
        expect(name in known, f"Dockerfile: there is no setting {name}")
    expect(image_env.get("NDSERVE_LISTEN", "").endswith(f":{port}"), "Dockerfile: EXPOSE is not the port of NDSERVE_LISTEN")

    compose = yaml.safe_load((ROOT / "deploy/compose.yaml").read_text())["services"]["ndserve"]
    expect(compose["image"] == f"ndserve:{version}", f"compose: the image is not of version {version}")
    expect(all(mapping.split(":")[-1] == str(port) for mapping in compose["ports"]), f"compose: the port is not {port}")
    expect(compose["read_only"] is True and compose["cap_drop"] == ["ALL"], "compose: not read-only, or with capabilities")
    environment = compose.get("environment", {})
    drain(environment, known, seconds(compose["stop_grace_period"]), "compose")

    documents = list(yaml.safe_load_all((ROOT / "deploy/kubernetes/ndserve.yaml").read_text()))
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
    expect(ports == {"http": port}, f"kubernetes: the port is not {port}")
    expect(kinds["Service"]["spec"]["ports"][0]["targetPort"] in ports, "kubernetes: the service's port has no target")
    expect("limits" in container["resources"], "kubernetes: no limits")
    for probe in ["startupProbe", "readinessProbe", "livenessProbe"]:
        ask = container[probe]["httpGet"]
        expect(ask["port"] in ports, f"kubernetes: {probe} asks a port that is not there")
        expect(f'"{ask["path"]}"' in routes, f"kubernetes: {probe} asks {ask['path']}, which no route answers")
    environment = {entry["name"]: entry["value"] for entry in container["env"]}
    drain(environment, known, pod["terminationGracePeriodSeconds"], "kubernetes")

    for failure in FAILURES:
        print(f"deploy: FAILED: {failure}", file=sys.stderr)
    if not FAILURES:
        print(f"deploy: compose.yaml and {len(documents)} Kubernetes objects agree with Dockerfile, settings and routes")
    return 1 if FAILURES else 0


def drain(environment, known, grace, place):
    """Every variable is a setting, and the supervisor waits longer than the server drains."""
    for name in environment:
        expect(name in known, f"{place}: there is no setting {name}")
    total = sum(seconds(environment.get(name, known[name])) for name in ["NDSERVE_DRAIN_DELAY", "NDSERVE_DRAIN_TIMEOUT"])
    expect(total < grace, f"{place}: {grace} s of grace are not more than {total} s of draining")


sys.exit(main())
