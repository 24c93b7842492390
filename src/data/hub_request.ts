// Guarded HTTP to the Hugging Face hub: typed errors, environment, redirects, retries.
//
// Every request of this folder goes through `request`, so the rules hold in one place: https only, at most five
// redirects, the token goes to the endpoint and nowhere else, a silent connection is given up, failures that may pass
// are tried again a bounded number of times. Addresses on the content network are signed, and therefore never printed.

import { readFileSync } from "node:fs";
import { homedir } from "node:os";
import { join } from "node:path";

export type HubErrorCode =
  | "BadName" // neither a folder nor something the hub could know
  | "BadEnvironment" // HF_ENDPOINT or HF_TOKEN cannot be used
  | "NotFound" // no such model or revision
  | "AccessDenied" // private, gated, or a token that is not accepted
  | "UnsupportedModel" // the repository lacks a file that this project needs
  | "Offline" // HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE, and the model is not in the cache
  | "Network" // unreachable, or the connection broke
  | "RateLimited" // 429 until patience ran out
  | "ServerError" // 5xx until patience ran out
  | "BadResponse" // an answer that the hub would not give
  | "UnsafeRedirect" // to http, in a circle, or with a login in it
  | "SizeMismatch" // more bytes than announced, or another size
  | "HashMismatch" // the bytes are not those of the repository
  | "NoSpace" // the disk is full, or would be
  | "CacheUnwritable"; // the cache cannot be written

/** Why a model could not be fetched. The message is one line: cause, then fix. It never holds the token. */
export class HubError extends Error {
  override name = "HubError";
  readonly code: HubErrorCode;
  /** What the server asked for with Retry-After, milliseconds. */
  readonly retryAfterMs: number | undefined;

  constructor(code: HubErrorCode, message: string, options: ErrorOptions & { retryAfterMs?: number | undefined } = {}) {
    super(message, options);
    this.code = code;
    this.retryAfterMs = options.retryAfterMs;
  }
}

/** Failures that may pass by themselves. */
export function isTransient(error: unknown): error is HubError {
  return error instanceof HubError && ["Network", "RateLimited", "ServerError"].includes(error.code);
}

// ---- environment --------------------------------------------------------------------------------------------------

export type Environment = Readonly<Record<string, string | undefined>>;

/** What the variables that Python's huggingface_hub reads say. */
export interface HubSettings {
  readonly endpoint: URL;
  readonly cacheDirectory: string;
  readonly isOffline: boolean;
  readonly token: string | undefined;
  /** The variable that names a proxy, where there is one that `fetch` does not use. */
  readonly unusedProxy: string | undefined;
}

/**
 * Reads HF_ENDPOINT, HF_HUB_OFFLINE, TRANSFORMERS_OFFLINE, HF_TOKEN, HF_TOKEN_PATH, HF_HUB_CACHE, HF_HOME and
 * XDG_CACHE_HOME with Python's meaning and defaults. Departures: a relative HF_ENDPOINT or one without https is
 * refused; whether a proxy is used is up to Node.
 * @throws HubError BadEnvironment
 */
export function readSettings(env: Environment): HubSettings {
  const path = (text: string): string => text.replace(/^~(?=$|[\\/])/, homedir());
  const home = path(env["HF_HOME"] || join(env["XDG_CACHE_HOME"] || "~/.cache", "huggingface"));
  return {
    endpoint: checkedEndpoint(env["HF_ENDPOINT"] || "https://huggingface.co"),
    cacheDirectory: path(env["HF_HUB_CACHE"] || env["HUGGINGFACE_HUB_CACHE"] || join(home, "hub")),
    isOffline: /^(1|on|yes|true)$/i.test(env["HF_HUB_OFFLINE"] || env["TRANSFORMERS_OFFLINE"] || ""),
    token: readToken(env, path(env["HF_TOKEN_PATH"] || join(home, "token"))),
    unusedProxy: unusedProxy(env),
  };
}

/** Node uses HTTPS_PROXY when it is told to and new enough (24, or a late 22), and ALL_PROXY never. */
function unusedProxy(env: Environment): string | undefined {
  const name = ["HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"].find((variable) => env[variable]);
  const options = [...process.execArgv, env["NODE_OPTIONS"]].join(" ");
  const isAsked = env["NODE_USE_ENV_PROXY"] === "1" || options.includes("--use-env-proxy");
  const canUse = parseInt(process.versions.node) >= 24 || process.allowedNodeEnvironmentFlags.has("--use-env-proxy");
  return isAsked && canUse && name?.toUpperCase() === "HTTPS_PROXY" ? undefined : name;
}

function checkedEndpoint(text: string): URL {
  const url = URL.canParse(text) ? new URL(text) : undefined;
  const isSafe = url?.protocol === "https:" || (url?.protocol === "http:" && isLoopback(url));
  if (url === undefined || !isSafe || url.username !== "" || url.password !== "") {
    throw new HubError("BadEnvironment", "HF_ENDPOINT must be an https address without login. Fix: correct it");
  }
  return url;
}

/** A header cannot hold other characters, and fetch would print the token to say so. */
function readToken(env: Environment, file: string): string | undefined {
  const token = (env["HF_TOKEN"] || env["HUGGING_FACE_HUB_TOKEN"] || readIfThere(file)).trim();
  if (token === "") return undefined;
  if (/^[\x21-\x7e]+$/.test(token)) return token;
  throw new HubError(
    "BadEnvironment", "the hub token holds characters that no token has. Fix: set HF_TOKEN again, or unset it",
  );
}

function readIfThere(file: string): string {
  try {
    return readFileSync(file, "utf8");
  } catch {
    return "";
  }
}

function isLoopback(url: URL): boolean {
  return ["localhost", "127.0.0.1", "[::1]"].includes(url.hostname);
}

// ---- one request --------------------------------------------------------------------------------------------------

/** Where requests go, for which model (in messages), and what the tests replace. */
export interface Hub extends HubSettings {
  readonly model: string;
  readonly sleep: (milliseconds: number) => Promise<void>;
  /** Prints a line for the user. */
  readonly log: (line: string) => void;
  /** A connection that is silent for longer is given up, milliseconds. */
  readonly stallMs: number;
}

const MAX_REDIRECTS = 5;
/** No listing of a model is longer. */
const MAX_API_BYTES = 16 << 20;

/**
 * GETs `url` and hands each part of the body to `onResponse`'s iterator as it comes.
 * The response has status 200 or 206. Anything else, and a connection that breaks or falls silent, is a HubError.
 */
export async function request<T>(
  hub: Hub,
  url: URL,
  headers: Readonly<Record<string, string>>,
  onResponse: (response: Response, body: AsyncIterable<Uint8Array>) => Promise<T>,
): Promise<T> {
  const stall = new AbortController();
  const timer = setTimeout(() => stall.abort(new Error(`silent for ${hub.stallMs / 1000} s`)), hub.stallMs);
  try {
    const response = await followRedirects(hub, url, headers, stall.signal);
    return await onResponse(response, bodyOf(response, timer));
  } finally {
    clearTimeout(timer);
    stall.abort(); // closes a connection whose body was not read to its end
  }
}

/** Redirects are followed here and not by fetch, which would go to http and to any number of places. */
async function followRedirects(
  hub: Hub, start: URL, headers: Readonly<Record<string, string>>, signal: AbortSignal,
): Promise<Response> {
  let url = start;
  let isTrusted = true;
  for (let hop = 0; hop <= MAX_REDIRECTS; hop++) {
    checkAddress(hub, url);
    isTrusted &&= url.origin === hub.endpoint.origin;
    const login = isTrusted && hub.token !== undefined ? { authorization: `Bearer ${hub.token}` } : {};
    const response = await connect(hub, url, { headers: { ...headers, ...login }, redirect: "manual", signal });
    if (response.status === 200 || response.status === 206) return response;
    const location = response.status >= 300 && response.status < 400 ? response.headers.get("location") : null;
    if (location === null) throw statusError(hub, url, isTrusted, response);
    if (!URL.canParse(location, url.href)) throw odd("BadResponse", url, "redirects to no address");
    await response.body?.cancel();
    url = new URL(location, url);
  }
  throw odd("UnsafeRedirect", start, `redirects more than ${MAX_REDIRECTS} times`);
}

/** A server that does what no hub does. */
function odd(code: HubErrorCode, { host }: URL, what: string): HubError {
  return new HubError(code, `${host} ${what}. Fix: check HF_ENDPOINT, and what is between here and there`);
}

function checkAddress(hub: Hub, url: URL): void {
  // A test's own server is the one place where http is allowed, and it may only lead to others of its kind.
  const isLocalTest = hub.endpoint.protocol === "http:" && url.protocol === "http:" && isLoopback(url);
  if (url.protocol !== "https:" && !isLocalTest) {
    throw odd("UnsafeRedirect", hub.endpoint, `redirects to ${url.protocol}//${url.host}, which is not https`);
  }
  if (url.username !== "" || url.password !== "") {
    throw odd("UnsafeRedirect", hub.endpoint, "redirects to an address with a login");
  }
}

async function connect({ unusedProxy: proxy }: Hub, url: URL, options: RequestInit): Promise<Response> {
  try {
    return await fetch(url, options);
  } catch (error) {
    const cause = `cannot reach ${url.host} (${reasonOf(error)})`;
    const settings = `${/^all/i.test(proxy ?? "") ? "HTTPS_PROXY and " : ""}NODE_USE_ENV_PROXY=1`;
    const message = proxy === undefined ? `${cause}. Fix: check the connection`
      : `${cause}; the proxy in ${proxy} is not used. Fix: run Node 24 with ${settings}, or download the model with ` +
        "Python's huggingface_hub into the same cache and set HF_HUB_OFFLINE=1";
    throw new HubError("Network", message, { cause: error });
  }
}

async function* bodyOf(response: Response, timer: NodeJS.Timeout): AsyncGenerator<Uint8Array> {
  try {
    for await (const chunk of response.body ?? []) {
      timer.refresh();
      yield chunk as Uint8Array;
    }
  } catch (error) {
    const { host } = new URL(response.url);
    throw new HubError("Network", `the connection to ${host} broke (${reasonOf(error)}). Fix: run again to resume`, {
      cause: error,
    });
  }
}

/** fetch hides the reason, a system code if there is one, one level down. */
function reasonOf(error: unknown): string {
  const cause = (error as Error).cause ?? error;
  return (cause as NodeJS.ErrnoException).code ?? (cause as Error).message;
}

function statusError(hub: Hub, url: URL, isTrusted: boolean, response: Response): HubError {
  const { status } = response;
  const retryAfterMs = parseRetryAfter(response.headers.get("retry-after"));
  if (status === 429) {
    const fix = hub.token === undefined ? "wait a while, or set HF_TOKEN" : "wait a while";
    return new HubError("RateLimited", `${url.host} answers "too many requests". Fix: ${fix}`, { retryAfterMs });
  }
  // A signed address that has expired also says 403; the next attempt asks the endpoint for a fresh one.
  if (status >= 500 || !isTrusted) {
    const message = `${url.host} answers with status ${status}. Fix: try again later`;
    return new HubError("ServerError", message, { retryAfterMs });
  }
  const page = `${hub.endpoint.origin}/${hub.model}`;
  if (status === 401 && hub.token === undefined) {
    return new HubError(
      "AccessDenied",
      `${url.host} shows no model ${hub.model} without a login: misspelt, private or gated. ` +
        `Fix: check the name, or accept the terms on ${page} and set HF_TOKEN`,
    );
  }
  if (status === 401 || status === 403) {
    return new HubError(
      "AccessDenied",
      `${url.host} refuses access to ${hub.model}: it is private or gated, or the token is not valid. ` +
        `Fix: accept its terms on ${page} and set HF_TOKEN to a valid token of that account`,
    );
  }
  if (status === 404) {
    const what = response.headers.get("x-error-code") === "RevisionNotFound" ? "no such revision of" : "no model";
    return new HubError("NotFound", `${url.host} has ${what} ${hub.model}. Fix: check the name given to --model`);
  }
  return odd("BadResponse", url, `answers with status ${status}`);
}

/** Seconds or a date, as RFC 9110 allows, in milliseconds from now. */
function parseRetryAfter(header: string | null): number | undefined {
  if (header === null) return undefined;
  const milliseconds = /^\d+$/.test(header) ? Number(header) * 1000 : Date.parse(header) - Date.now();
  return Number.isNaN(milliseconds) ? undefined : Math.max(0, milliseconds);
}

// ---- patience -----------------------------------------------------------------------------------------------------

const FIRST_WAIT_MS = 500;
const LONGEST_WAIT_MS = 60_000;

/** Runs `action` up to `attempts` times while it fails transiently; waits twice as long each time, or as asked. */
export async function withRetries<T>(hub: Hub, attempts: number, action: () => Promise<T>): Promise<T> {
  for (let attempt = 1; ; attempt++) {
    try {
      return await action();
    } catch (error) {
      if (!isTransient(error) || attempt === attempts) throw error;
      const wait = Math.min(error.retryAfterMs ?? FIRST_WAIT_MS * 2 ** (attempt - 1), LONGEST_WAIT_MS);
      if (wait >= 5000) hub.log(`note: ${firstSentence(error.message)}; trying again in ${Math.ceil(wait / 1000)} s`);
      await hub.sleep(wait);
    }
  }
}

/** A message without its fix. */
export function firstSentence(message: string): string {
  return message.split(". Fix:")[0]!;
}

/** Few, because a user without a connection waits for them before the cache is used. */
const API_ATTEMPTS = 3;
/** Pages of a listing and everything else that one model asks for. */
const MAX_API_REQUESTS = 100;

/**
 * A `fetch` for the hub library's calls: it answers with status 200 and a body of bounded size, or throws HubError.
 * The library follows the "next page" link wherever it points; here it must stay on the endpoint.
 */
export function apiFetch(hub: Hub): typeof fetch {
  let requests = 0;
  return (input) => {
    const url = new URL(input as string);
    if (url.origin !== hub.endpoint.origin || ++requests > MAX_API_REQUESTS) {
      throw odd("BadResponse", hub.endpoint, `lists the files of ${hub.model} on another host, or without end`);
    }
    return withRetries(hub, API_ATTEMPTS, () => {
      return request(hub, url, { accept: "application/json" }, async ({ headers }, body) => {
        const parts: Uint8Array[] = [];
        let length = 0;
        for await (const part of body) {
          parts.push(part);
          length += part.length;
          if (length > MAX_API_BYTES) throw odd("BadResponse", url, "answers without end");
        }
        return new Response(Buffer.concat(parts), { headers: { link: headers.get("link") ?? "" } });
      });
    });
  };
}
