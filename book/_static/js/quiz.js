/* Self-check questions. Choosing an option shows its explanation, and only that one.
 *
 * The page works without this script: each explanation is then in a <details> element. Nothing is stored;
 * whoever wants to keep the answers listens for the event "llmfs:quiz", whose detail is {id, correct}.
 */
(() => {
  "use strict";

  function prepare(quiz) {
    const options = Array.from(quiz.querySelectorAll(".quiz-option"), (element) => {
      const details = element.querySelector(".quiz-why");
      // A region that is on the page before it gets its text: screen readers announce what arrives in it.
      const feedback = document.createElement("div");
      feedback.className = "quiz-feedback";
      feedback.setAttribute("aria-live", "polite");
      const because = details.querySelector(".quiz-because");
      details.replaceWith(feedback);
      return { element, feedback, because, input: element.querySelector("input") };
    });

    function choose(chosen) {
      const correct = chosen.element.dataset.correct === "true";
      for (const option of options) {
        const isChosen = option === chosen;
        option.element.classList.toggle("quiz-right", isChosen && correct);
        option.element.classList.toggle("quiz-wrong", isChosen && !correct);
        option.feedback.replaceChildren(...(isChosen ? [option.because] : []));
      }
      quiz.dispatchEvent(
        new CustomEvent("llmfs:quiz", { bubbles: true, detail: { id: quiz.dataset.quiz, correct } })
      );
    }

    for (const option of options) {
      option.input.checked = false; // browsers restore a choice on reload, without its explanation
      option.input.addEventListener("change", () => choose(option));
    }
  }

  function start() {
    document.querySelectorAll("fieldset.quiz").forEach(prepare);
  }

  if (document.readyState === "loading") document.addEventListener("DOMContentLoaded", start);
  else start();
})();
