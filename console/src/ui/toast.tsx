import { useEffect, useState } from "preact/hooks";
import { Button } from "./basics";

interface Message {
  id: number;
  text: string;
  tone: "plain" | "bad";
  action?: { text: string; run: () => void } | undefined;
}

let push: (message: Omit<Message, "id">) => void = () => undefined;

export function toast(text: string, options: { tone?: "plain" | "bad"; action?: Message["action"] } = {}): void {
  push({ text, tone: options.tone ?? "plain", action: options.action });
}

export function Toasts() {
  const [messages, setMessages] = useState<Message[]>([]);
  useEffect(() => {
    let next = 0;
    push = (message) => {
      const id = next++;
      setMessages((old) => [...old.slice(-2), { ...message, id }]);
      setTimeout(() => setMessages((old) => old.filter((each) => each.id !== id)), message.tone === "bad" ? 9000 : 5000);
    };
  }, []);
  return (
    <div class="toasts" role="status" aria-live="polite">
      {messages.map((message) => (
        <div key={message.id} class={`toast toast-${message.tone}`}>
          <span>{message.text}</span>
          {message.action && <Button kind="quiet" onClick={message.action.run}>{message.action.text}</Button>}
        </div>
      ))}
    </div>
  );
}
