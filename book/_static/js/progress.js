/* What the reader has finished, kept in this browser and nowhere else.
 *
 * One entry of localStorage holds {version, lessons, quizzes, exercises}: what is finished, answered right or done,
 * by id. A page without the script loses nothing but this. LLMFS_LESSONS (progress-data.js) lists what there is.
 */
(() => {
  "use strict";

  const KEY = "llmfs-progress";
  const KINDS = ["lessons", "quizzes", "exercises"];
  const LESSONS = window.LLMFS_LESSONS || [];
  let lasting = true; // whether the browser keeps what is stored

  const empty = () => ({ version: 1, lessons: {}, quizzes: {}, exercises: {} });

  /* Anything that is no progress of ours becomes an error; ids and true/false are all that is taken over. */
  function parse(text) {
    const found = JSON.parse(text);
    if (!found || found.version !== 1) throw new Error("this is not a progress file of this book");
    const state = empty();
    for (const kind of KINDS) {
      for (const [id, value] of Object.entries(found[kind] || {})) {
        if (typeof value === "boolean") state[kind][id] = value;
      }
    }
    return state;
  }

  function read() {
    try {
      const text = localStorage.getItem(KEY);
      return text ? parse(text) : empty();
    } catch {
      return empty();
    }
  }

  let state = read();

  function save() {
    try {
      localStorage.setItem(KEY, JSON.stringify(state));
    } catch {
      lasting = false; // storage is switched off or full: it holds until the page is left
    }
    document.dispatchEvent(new CustomEvent("llmfs:progress"));
  }

  function mark(kind, id, value) {
    if (lasting) state = read(); // another tab may have stored something since
    state[kind][id] = value;
    save();
  }

  const done = (kind, ids) => ids.filter((id) => state[kind][id] === true).length;

  function element(tag, properties = {}, ...children) {
    const made = Object.assign(document.createElement(tag), properties);
    made.append(...children);
    return made;
  }

  function checkbox(text, isOn, change) {
    const input = element("input", { type: "checkbox", checked: isOn });
    input.addEventListener("change", () => change(input.checked));
    return element("label", { className: "progress-check" }, input, ` ${text}`);
  }

  function counts(lesson) {
    const parts = [];
    if (lesson.quizzes.length) parts.push(`${done("quizzes", lesson.quizzes)} of ${lesson.quizzes.length} questions`);
    if (lesson.exercises.length) {
      parts.push(`${done("exercises", lesson.exercises)} of ${lesson.exercises.length} exercises`);
    }
    return parts.join(", ");
  }

  /* ---- On a lesson's page -------------------------------------------------------------------------------- */

  function trackLesson(lesson, article) {
    for (const id of lesson.exercises) {
      const exercise = document.getElementById(id);
      if (!exercise) continue;
      const title = exercise.querySelector(".admonition-title")?.textContent.trim() || "this exercise";
      const box = checkbox("Done", state.exercises[id] === true, (value) => mark("exercises", id, value));
      box.firstChild.setAttribute("aria-label", `Done: ${title}`);
      exercise.append(box);
    }
    document.addEventListener("llmfs:quiz", (event) => {
      // The first right answer counts; a wrong one does not take it away again.
      if (event.detail.correct || !(event.detail.id in state.quizzes)) mark("quizzes", event.detail.id, event.detail.correct);
    });
    const status = element("p", { className: "progress-counts" });
    status.setAttribute("role", "status");
    const finished = checkbox(`I have finished ${lesson.id}`, state.lessons[lesson.id] === true, (value) =>
      mark("lessons", lesson.id, value)
    );
    const show = () => {
      status.textContent = counts(lesson) + (lasting ? "" : " (this browser forgets it when the page is closed)");
    };
    show();
    document.addEventListener("llmfs:progress", show);
    const panel = element("section", { className: "progress-lesson" }, finished, status);
    panel.setAttribute("aria-label", "Your progress in this lesson");
    article.append(panel);
  }

  /* ---- The overview --------------------------------------------------------------------------------------- */

  function row(lesson, root) {
    const parts = 1 + lesson.quizzes.length + lesson.exercises.length;
    const reached =
      (state.lessons[lesson.id] ? 1 : 0) + done("quizzes", lesson.quizzes) + done("exercises", lesson.exercises);
    const bar = element("progress", { max: parts, value: reached });
    bar.setAttribute("aria-label", `${lesson.id}: ${reached} of ${parts} steps`);
    const mark = state.lessons[lesson.id] ? " ✓" : "";
    return element(
      "li",
      {},
      element("a", { href: root + lesson.page, textContent: lesson.title + mark }),
      bar,
      element("span", { className: "progress-counts", textContent: counts(lesson) })
    );
  }

  function exportFile() {
    const url = URL.createObjectURL(new Blob([JSON.stringify(state, null, 2)], { type: "application/json" }));
    element("a", { href: url, download: "llm-from-scratch-progress.json" }).click();
    setTimeout(() => URL.revokeObjectURL(url), 1000);
  }

  function showOverview(section, root) {
    const list = element("ol", { className: "progress-list" });
    const status = element("p", { className: "progress-status" });
    status.setAttribute("role", "status");
    const show = () => list.replaceChildren(...LESSONS.map((lesson) => row(lesson, root)));
    const file = element("input", { type: "file", accept: "application/json,.json", hidden: true });
    file.addEventListener("change", async () => {
      try {
        state = parse(await file.files[0].text());
        save();
        status.textContent = "Imported.";
      } catch (error) {
        status.textContent = `Nothing was imported: ${error.message}.`;
      }
      file.value = "";
    });
    const button = (text, act) => {
      const made = element("button", { type: "button", className: "progress-button", textContent: text });
      made.addEventListener("click", act);
      return made;
    };
    const clear = button("Clear", () => {
      if (!window.confirm("Forget all progress that this browser keeps?")) return;
      state = empty();
      save();
      status.textContent = "Cleared.";
    });
    show();
    document.addEventListener("llmfs:progress", show);
    const buttons = [button("Export", exportFile), button("Import", () => file.click()), clear];
    section.replaceChildren(list, element("div", { className: "progress-buttons" }, ...buttons, file), status);
  }

  function start() {
    const root = document.documentElement.dataset.content_root || "./";
    document.querySelectorAll(".progress-overview").forEach((section) => showOverview(section, root));
    const lesson = LESSONS.find(({ page }) => decodeURI(location.pathname).endsWith(page));
    const article = document.querySelector("article.bd-article");
    if (lesson && article) trackLesson(lesson, article);
    const refresh = () => {
      state = read();
      document.dispatchEvent(new CustomEvent("llmfs:progress"));
    };
    window.addEventListener("storage", ({ key }) => {
      if (key === KEY || key === null) refresh(); // another tab has changed it, or cleared all
    });
    window.addEventListener("pageshow", ({ persisted }) => {
      if (persisted) refresh(); // "Back" shows the page as it was left
    });
  }

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
