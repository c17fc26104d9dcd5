import { z } from "zod";
import { descriptionInside, environmentSchema } from "../src/config.ts";

/** Renders `.env.example` from the schema that reads the environment. `scripts/bun scripts/envExample.ts` writes it. */
export function renderEnvExample(): string {
  const properties = z.toJSONSchema(environmentSchema, { io: "input", unrepresentable: "any" }) as {
    properties: Record<string, { default?: unknown }>;
    required?: string[];
  };
  const lines = Object.entries(environmentSchema.shape).map(([name, schema]) => {
    const value = properties.properties[name]?.default;
    const example = (schema as z.ZodType).meta()?.["example"] as string | undefined;
    const note = properties.required?.includes(name) ? " (required; npm start provides it)" : "";
    return `# ${descriptionInside(schema)}${note}\n${value === undefined ? `#${name}=${example ?? ""}` : `#${name}=${JSON.stringify(value).replaceAll('"', "")}`}\n`;
  });
  const data = "# Where npm start keeps everything\n#REEF_DATA_DIR=.data\n";
  return `# Every setting of Reef, with its default. Copy to .env and uncomment what you change.\n\n${[data, ...lines].join("\n")}`;
}

if (import.meta.main) await Bun.write(new URL("../.env.example", import.meta.url), renderEnvExample());
