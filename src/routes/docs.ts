import { fileURLToPath } from "node:url";
import { dirname, join } from "node:path";
import type { Hono } from "hono";
import type { Env, RouteSpec } from "../http/env.ts";
import { AppError } from "../lib/errors.ts";
import { renderOpenApi } from "../http/openapi.ts";

const ASSETS = new Map([
  ["swagger-ui.css", "text/css; charset=utf-8"],
  ["swagger-ui-bundle.js", "text/javascript; charset=utf-8"],
]);
const FOLDER = dirname(fileURLToPath(import.meta.resolve("swagger-ui-dist/package.json")));

const PAGE = `<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>Reef API</title>
<link rel="stylesheet" href="/docs/swagger-ui.css"></head>
<body><div id="ui"></div><script src="/docs/swagger-ui-bundle.js"></script>
<script src="/docs/start.js"></script></body>
</html>`;
const START = 'SwaggerUIBundle({ url: "/openapi.json", dom_id: "#ui", deepLinking: true });';

/** `/openapi.json` and a page to read it; everything the page loads comes from here. */
export function docsRoutes(app: Hono<Env>, specs: RouteSpec[]): void {
  app.get("/openapi.json", (c) => c.json(renderOpenApi(specs)));
  app.get("/docs", (c) =>
    c.html(PAGE, 200, {
      "Content-Security-Policy":
        "default-src 'none'; connect-src 'self'; script-src 'self'; style-src 'self' 'unsafe-inline'; img-src 'self' data:; " +
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    }),
  );
  app.get("/docs/start.js", (c) => c.body(START, 200, { "Content-Type": "text/javascript; charset=utf-8" }));
  app.get("/docs/:asset", (c) => {
    const name = c.req.param("asset");
    const type = ASSETS.get(name);
    if (!type) throw new AppError("not_found");
    return new Response(Bun.file(join(FOLDER, name)), {
      headers: { "Content-Type": type, "Cache-Control": "public, max-age=86400" },
    });
  });
}
