import type { ComponentChildren } from "preact";
import { useEffect, useId, useRef, useState } from "preact/hooks";
import { asError } from "../lib/hooks";
import { Button, ErrorNote, TextField } from "./basics";

/** `stays`: a click outside does not close it, because what it shows cannot be shown again. */
export function Dialog({ title, stays = false, onClose, children, actions }: {
  title: string;
  stays?: boolean;
  onClose: () => void;
  children: ComponentChildren;
  actions?: ComponentChildren;
}) {
  const dialog = useRef<HTMLDialogElement>(null);
  const id = useId();
  useEffect(() => {
    const element = dialog.current!;
    element.showModal();
    element.querySelector<HTMLElement>("input, textarea, select")?.focus();
    return () => element.close();
  }, []);
  return (
    <dialog
      ref={dialog} aria-labelledby={id}
      onCancel={(event) => {
        event.preventDefault();
        onClose();
      }}
      onClick={(event) => !stays && event.target === dialog.current && onClose()}
    >
      <div class="dialog-body">
        <header class="dialog-head">
          <h2 id={id}>{title}</h2>
          <Button kind="quiet" icon="cross" aria-label="Close" onClick={onClose} />
        </header>
        {children}
        {actions && <footer class="dialog-actions">{actions}</footer>}
      </div>
    </dialog>
  );
}

/** Asks before an act that cannot be undone, with a reason where the service stores one. */
export function Confirm({ title, children, action, kind = "danger", reason, onClose, run }: {
  title: string;
  children: ComponentChildren;
  action: string;
  kind?: "danger" | "primary";
  reason?: "required" | "optional";
  onClose: () => void;
  run: (reason: string) => Promise<unknown>;
}) {
  const [text, setText] = useState("");
  const [busy, setBusy] = useState(false);
  const [error, setError] = useState<Error>();
  const act = async () => {
    setBusy(true);
    setError(undefined);
    try {
      await run(text.trim());
      onClose();
    } catch (failure) {
      setError(asError(failure));
      setBusy(false);
    }
  };
  return (
    <Dialog
      title={title} onClose={onClose}
      actions={
        <>
          <Button onClick={onClose}>Cancel</Button>
          <Button kind={kind} busy={busy} disabled={reason === "required" && !text.trim()} onClick={() => void act()}>{action}</Button>
        </>
      }
    >
      <div class="prose">{children}</div>
      {reason && (
        <TextField
          label={reason === "required" ? "Reason" : "Reason (optional)"} value={text} onInput={setText} wide
          hint="Stored with the act, for later readers."
        />
      )}
      {error && <ErrorNote error={error} />}
    </Dialog>
  );
}
