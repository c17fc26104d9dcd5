import { ConfigError, loadConfig, type Config } from "../config.ts";
import { createDeps, type Deps } from "../deps.ts";
import { createLog } from "../lib/log.ts";
import { runJob, type Job } from "../services/jobs.ts";

/**
 * The whole program of a timer's job: `--help`, the configuration, the job under its lock, one summary line on standard
 * output. Exit code: 0 done (or at work already), 1 failed, 75 the database does not answer (try later), 78 misconfigured.
 * Never returns. `onNoDatabase` is called before 75; false: it answers after all, and takes nothing, so the job has failed.
 */
export async function runTimer(
  job: Job,
  help: string,
  onNoDatabase?: (deps: Deps) => Promise<boolean>,
): Promise<never> {
  if (process.argv.includes("--help") || process.argv.includes("-h")) {
    console.log(help);
    process.exit(0);
  }
  const deps = connect(job.name);
  let code = 0;
  try {
    const { outcome, summary } = await runJob(deps, job);
    console.log(`${job.name}: ${outcome}: ${summary}`);
    code = outcome === "failed" ? 1 : 0;
  } catch (error) {
    console.error(`${job.name}: failed: ${error instanceof Error ? error.message : String(error)}`);
    const isAway = await onNoDatabase?.(deps).catch((err: unknown) => deps.log.error({ err }, "nobody could be told"));
    code = isAway === false ? 1 : 75;
  }
  await deps.close();
  process.exit(code);
}

function connect(name: string): Deps {
  let config: Config;
  try {
    config = loadConfig(process.env);
  } catch (error) {
    if (!(error instanceof ConfigError)) throw error;
    console.error(`${name}: ${error.message}`);
    process.exit(78);
  }
  return createDeps({ ...config, DATABASE_POOL: 4 }, createLog(config.LOG_LEVEL));
}
