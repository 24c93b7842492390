/**
 * A hub of our own: the routes of huggingface.co that a model is fetched through, and a second server that plays its
 * content network, as another host. A test breaks either by intercepting requests.
 */
import { createHash, randomBytes } from "node:crypto";
import { createServer, type IncomingMessage, type Server, type ServerResponse } from "node:http";
import type { AddressInfo } from "node:net";

/** The commit that "main" points to. */
export const COMMIT = "0123456789abcdef0123456789abcdef01234567";

export interface SeenRequest {
  readonly route: "info" | "tree" | "resolve" | "cdn";
  readonly path: string;
  /** The file's name, for "resolve" and "cdn". */
  readonly file: string;
  readonly authorization: string | undefined;
  readonly range: string | undefined;
}

/** Answers a request instead of the server, or returns false. `body` is the whole file for "cdn". */
export type Intercept = (request: SeenRequest, response: ServerResponse, body: Buffer) => boolean | void;

export interface TestHub {
  readonly url: string;
  readonly cdnUrl: string;
  readonly seen: SeenRequest[];
  intercept: Intercept;
  /** What the repository holds; large files are those named .safetensors. */
  files: Record<string, Buffer>;
  /** Changes the listing before it is sent. */
  editListing: (entries: Record<string, unknown>[]) => unknown;
  count(route: SeenRequest["route"]): number;
  close(): Promise<void>;
}

export const sha256 = (bytes: Buffer): string => createHash("sha256").update(bytes).digest("hex");
export const gitOid = (bytes: Buffer): string =>
  createHash("sha1").update(`blob ${bytes.length}\0`).update(bytes).digest("hex");
export const isLarge = (name: string): boolean => name.endsWith(".safetensors");
export const blobName = (name: string, bytes: Buffer): string => (isLarge(name) ? sha256(bytes) : gitOid(bytes));

/** A small repository, with files that nobody should want. */
export function sampleRepository(): Record<string, Buffer> {
  return {
    ".gitattributes": Buffer.from("*.safetensors filter=lfs\n"),
    "config.json": Buffer.from('{"model_type":"qwen3"}'),
    "tokenizer.json": Buffer.from('{"model":{}}'),
    "chat_template.jinja": Buffer.from("{{ messages }}"),
    "pytorch_model.bin": Buffer.from("pickle"),
    "model.safetensors": randomBytes(100_000),
  };
}

export async function startHub(): Promise<TestHub> {
  const hub: TestHub = {
    url: "",
    cdnUrl: "",
    seen: [],
    intercept: () => false,
    files: sampleRepository(),
    editListing: (entries) => entries,
    count: (route) => hub.seen.filter((request) => request.route === route).length,
    close: async () => {
      for (const server of [main, cdn]) {
        server.closeAllConnections();
        await new Promise((done) => server.close(done));
      }
    },
  };

  /** Records the request, offers it to the test, and says whether it is still to be answered. */
  function isOpen(
    route: SeenRequest["route"], file: string, request: IncomingMessage, response: ServerResponse,
  ): boolean {
    const { authorization, range } = request.headers;
    const seen = { route, file, path: request.url!, authorization, range };
    hub.seen.push(seen);
    return hub.intercept(seen, response, hub.files[file] ?? Buffer.alloc(0)) !== true;
  }

  const main = createServer((request, response) => {
    const { pathname } = new URL(request.url!, hub.url);
    const [, info] = /^\/api\/models\/(.+)\/revision\/(?:main|[0-9a-f]{40})$/.exec(pathname) ?? [];
    const [, file] = /^\/tiny\/model\/resolve\/([0-9a-f]{40}\/.+)$/.exec(pathname) ?? [];
    if (info !== undefined) {
      if (isOpen("info", "", request, response)) sendJson(response, { _id: "1", id: info, sha: COMMIT });
    } else if (pathname === `/api/models/tiny/model/tree/${COMMIT}`) {
      if (isOpen("tree", "", request, response)) sendJson(response, hub.editListing(listing(hub.files)));
    } else if (pathname.startsWith("/small/")) {
      response.end(hub.files[pathname.slice("/small/".length)]); // where the relative redirect below leads
    } else if (file?.startsWith(COMMIT)) {
      const name = file.slice(COMMIT.length + 1);
      if (!isOpen("resolve", name, request, response)) return;
      const location = isLarge(name) ? `${hub.cdnUrl}/${name}?signature=secret` : `/small/${name}`;
      response.writeHead(isLarge(name) ? 302 : 307, { location }).end();
    } else {
      sendJson(response, { error: "Repository not found" }, 404, { "x-error-code": "RepoNotFound" });
    }
  });

  const cdn = createServer((request, response) => {
    const name = new URL(request.url!, hub.cdnUrl).pathname.slice(1);
    if (isOpen("cdn", name, request, response)) sendRange(response, hub.files[name]!, request.headers.range);
  });

  const [mainPort, cdnPort] = [await listen(main), await listen(cdn)];
  Object.assign(hub, { url: `http://127.0.0.1:${mainPort}`, cdnUrl: `http://localhost:${cdnPort}` });
  return hub;
}

/** All addresses, because "localhost" may be either kind. */
async function listen(server: Server): Promise<number> {
  await new Promise<void>((done) => server.listen(0, done));
  return (server.address() as AddressInfo).port;
}

function listing(files: Record<string, Buffer>): Record<string, unknown>[] {
  return Object.entries(files).map(([path, bytes]) => {
    const lfs = { oid: sha256(bytes), size: bytes.length, pointerSize: 134 };
    return { type: "file", path, size: bytes.length, oid: gitOid(bytes), ...(isLarge(path) ? { lfs } : {}) };
  });
}

export function sendJson(response: ServerResponse, value: unknown, status = 200, headers = {}): void {
  response.writeHead(status, { "content-type": "application/json", ...headers }).end(JSON.stringify(value));
}

export function sendRange(response: ServerResponse, bytes: Buffer, range?: string): void {
  const start = Number(/^bytes=(\d+)-$/.exec(range ?? "")?.[1] ?? 0);
  const headers = { "content-length": bytes.length - start };
  if (range === undefined) response.writeHead(200, headers);
  else {
    response.writeHead(206, { ...headers, "content-range": `bytes ${start}-${bytes.length - 1}/${bytes.length}` });
  }
  response.end(bytes.subarray(start));
}

/** Announces the whole file, sends its first `length` bytes from where it was asked, and cuts the connection. */
export function sendThenBreak(response: ServerResponse, bytes: Buffer, length: number, range?: string): void {
  const start = Number(/^bytes=(\d+)-$/.exec(range ?? "")?.[1] ?? 0);
  response.writeHead(range === undefined ? 200 : 206, {
    "content-length": bytes.length - start,
    ...(range === undefined ? {} : { "content-range": `bytes ${start}-${bytes.length - 1}/${bytes.length}` }),
  });
  response.write(bytes.subarray(start, start + length), () => setTimeout(() => response.destroy(), 20));
}
