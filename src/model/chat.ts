/**
 * Talks with a model in the terminal:
 *
 *   npx tsx src/model/chat.ts
 *
 * Replies appear as they are drawn. Ctrl-C stops a reply, which stays in the history as far as it was shown; Ctrl-C at
 * the prompt, Ctrl-D or /exit leave. Without a terminal every line of stdin is a message, and only replies go to
 * stdout. The history is cut at its old end when it no longer fits the model's positions.
 *
 * Random numbers depend on the seed and the conversation: the same words with the same seed get the same reply.
 */
import { createInterface } from "node:readline";
import { command, integer, runMain } from "../cli.ts";
import { TemplateError, type ChatMessage } from "../data/chat_template.ts";
import { visible, visibleLine } from "../visible.ts";
import type { ChatModel } from "./chat_model.ts";
import { readConfig } from "./config.ts";
import {
  endConversation,
  fitHistory,
  reply,
  startConversation,
  type Conversation,
  type FittedHistory,
} from "./conversation.ts";
import {
  addTextFlags,
  checkNumbers,
  endQuietlyOnClosedPipe,
  idsWithText,
  loadFor,
  openText,
  type TextFlags,
} from "./text_entry.ts";

const HELP = `/clear          forget the conversation
/system TEXT    set the system message; without TEXT: none
/seed N         other random numbers from here on
/exit           leave (also Ctrl-D, or Ctrl-C at the prompt)
Ctrl-C          stop the reply`;

/** Tokens of history that must fit into memory before a conversation begins. */
const LONG_CONVERSATION = 4096;

/** What changes while we talk. */
interface Session {
  readonly chat: ChatModel;
  readonly conversation: Conversation;
  readonly flags: TextFlags;
  system: string | undefined;
  seed: number;
  /** What was said, without the system message. */
  history: readonly ChatMessage[];
  /** Stops the reply in progress; null at the prompt. */
  controller: AbortController | null;
}

async function main(): Promise<void> {
  const chatCommand = addTextFlags(command("chat", "Talks with a model, one line a message."), {
    temperature: 0.7,
    topP: 0.95,
    maxTokens: 200,
  });
  const flags = chatCommand.parse().opts<TextFlags>();
  endQuietlyOnClosedPipe();
  const { directory, text } = await openText(flags);
  // The cache grows with the conversation; what a long one needs should be there.
  const promptLength = Math.min(LONG_CONVERSATION, readConfig(directory).maxPositions, text.maxLength);
  const model = loadFor({ prompts: 1, rows: 1, promptLength, newTokens: flags.maxTokens }, directory, flags);
  const chat: ChatModel = { ...text, model };
  if (!chat.hasChatTemplate) {
    console.error(`note: ${visibleLine(flags.model)} has no chat template: it continues the conversation as plain text`);
  }
  const session: Session = {
    chat,
    conversation: startConversation(chat.model),
    flags,
    system: flags.system,
    seed: flags.seed,
    history: [],
    controller: null,
  };
  try {
    await talk(session);
  } finally {
    endConversation(session.conversation);
  }
}

async function talk(session: Session): Promise<void> {
  const isTerminal = process.stdin.isTTY && process.stdout.isTTY;
  const lines = createInterface({
    input: process.stdin,
    ...(isTerminal ? { output: process.stdout, terminal: true, prompt: "> " } : {}),
  });
  const interrupt = (): void => {
    if (!session.controller) lines.close();
    else if (!session.controller.signal.aborted) session.controller.abort();
    else process.exit(130); // asked twice while a long step runs; exit restores the terminal
  };
  // In a terminal readline sees Ctrl-C as a key; otherwise it comes as a signal.
  lines.on("SIGINT", interrupt);
  process.on("SIGINT", interrupt);
  const prompt = (): void => {
    if (isTerminal) lines.prompt(true); // what was typed during the reply stays, the cursor behind it
  };
  try {
    if (isTerminal) console.error("/help lists the commands");
    prompt();
    for await (const line of lines) {
      const text = line.trim();
      if (text === "/exit") break;
      if (text.startsWith("/")) runCommand(session, text);
      else if (text !== "") await answer(session, text);
      prompt();
    }
  } finally {
    lines.close(); // gives the terminal back as it was
    process.off("SIGINT", interrupt);
    if (isTerminal) process.stdout.write("\n");
  }
}

function runCommand(session: Session, line: string): void {
  const [, name, rest] = /^\/(\S*)\s*(.*)$/.exec(line) as unknown as [string, string, string];
  if (name === "clear") session.history = [];
  else if (name === "system") session.system = rest === "" ? undefined : rest;
  else if (name === "seed") {
    try {
      session.seed = integer(0, 0xffffffff)(rest);
    } catch (error) {
      console.error(`/seed: ${visibleLine((error as Error).message)}`);
    }
  } else if (name === "help") console.error(HELP);
  else console.error(`no command /${visibleLine(name)}; /help lists them`);
}

/** Streams the reply to one message of the user, and adds both to the history. */
async function answer(session: Session, text: string): Promise<void> {
  const { chat, flags } = session;
  const maxLength = Math.min(chat.model.config.maxPositions, chat.maxLength);
  const system = session.system === undefined ? [] : [{ role: "system", content: session.system }];
  const messages = [...system, ...session.history, { role: "user", content: text }];
  const wantedRoom = Math.min(flags.maxTokens, Math.floor(maxLength / 2));
  let fitted: FittedHistory;
  try {
    fitted = fitHistory(messages, chat.encodePrompt, maxLength, wantedRoom);
  } catch (error) {
    if (!(error instanceof TemplateError)) throw error; // some templates know no system message
    console.error(`not sent: ${visibleLine(error.message)}`);
    return;
  }
  const room = maxLength - fitted.ids.length;
  if (room < 1) {
    console.error(`not sent: ${fitted.ids.length} tokens, and the model reads only ${maxLength}`);
    return;
  }
  if (fitted.dropped > 0) {
    console.error(`(forgot the oldest ${fitted.dropped} messages: the model reads only ${maxLength} tokens)`);
  }

  const decoder = chat.tokenizer.streamDecoder({ skipSpecial: true });
  let [shownTokens, shownText] = [0, ""];
  const show = (piece: string): void => {
    shownText += piece;
    process.stdout.write(process.stdout.isTTY ? visible(piece) : piece);
  };
  session.controller = new AbortController();
  const { temperature, topK, topP } = flags;
  const maxNewTokens = Math.min(flags.maxTokens, room);
  try {
    const completion = await reply(session.conversation, fitted.ids, {
      maxNewTokens, temperature, topK, topP,
      seed: session.seed,
      endIds: chat.tokenizer.eosIds,
      tokensPerReadback: 2,
      signal: session.controller.signal,
      onTokens: ([ids]) => {
        for (const id of idsWithText(chat.tokenizer, ids!.slice(shownTokens))) show(decoder.push(id));
        shownTokens = ids!.length;
      },
    });
    checkNumbers(completion);
    show(decoder.flush());
    process.stdout.write("\n");
    if (session.controller.signal.aborted) console.error("(stopped)");
    else if (!completion.ended) console.error(`(cut at ${maxNewTokens} tokens)`);
  } finally {
    session.controller = null;
  }
  // A reply stopped before its first word is no reply: the question is forgotten with it.
  const said = fitted.messages.slice(system.length);
  session.history = shownText === "" ? said.slice(0, -1) : [...said, { role: "assistant", content: shownText }];
}

await runMain(main);
