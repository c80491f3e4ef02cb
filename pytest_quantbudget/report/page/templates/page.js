"use strict";
// The browser of questions. All texts become text nodes: nothing that a model has said is read as markup.
(() => {
  const read = (id) => JSON.parse(document.getElementById(id).textContent);
  const AT_ONCE = 25;
  const LONGEST_DIFFERENCE = 1500000;
  const [KEPT, LOST, GAINED, WRONG, RIGHT_ALONE, WRONG_ALONE] = [0, 1, 2, 3, 4, 5];
  const OUTCOMES = ["right both times", "right to wrong", "wrong to right", "wrong both times", "right", "wrong"];
  const SHOW = [
    ["All that changed sides", (row) => row[1] === LOST || row[1] === GAINED],
    ["Right to wrong", (row) => row[1] === LOST],
    ["Wrong to right", (row) => row[1] === GAINED],
    ["Reworded, same outcome", (row) => (row[1] === KEPT || row[1] === WRONG) && row[2] !== row[5]],
    ["Wrong", (row) => row[1] === WRONG || row[1] === LOST || row[1] === WRONG_ALONE],
    ["All", () => true],
  ];
  let texts;
  const text = (number) => {
    if (number === -1) return null;
    if (number === -2) return "(left out: the page would be too large)";
    texts ??= read("texts");
    return texts[number];
  };
  const make = (tag, content, name) => {
    const element = document.createElement(tag);
    if (content !== undefined) element.textContent = content;
    if (name) element.className = name;
    return element;
  };

  // Words that only one side has: the longest common subsequence, in the middle that both ends leave.
  const words = (string) => string.match(/\s+|[\p{L}\p{N}_]+|[^\s\p{L}\p{N}_]/gu) ?? [];
  const difference = (left, right) => {
    const [a, b] = [words(left), words(right)];
    let start = 0;
    while (start < a.length && start < b.length && a[start] === b[start]) start++;
    let end = 0;
    while (end < a.length - start && end < b.length - start && a[a.length - 1 - end] === b[b.length - 1 - end]) end++;
    const [n, m] = [a.length - start - end, b.length - start - end];
    const same = [new Uint8Array(a.length).fill(1), new Uint8Array(b.length).fill(1)];
    same[0].fill(0, start, start + n);
    same[1].fill(0, start, start + m);
    if (n * m > 0 && n * m <= LONGEST_DIFFERENCE) {
      const best = new Uint16Array((n + 1) * (m + 1));
      for (let i = n - 1; i >= 0; i--) {
        for (let j = m - 1; j >= 0; j--) {
          best[i * (m + 1) + j] = a[start + i] === b[start + j]
            ? best[(i + 1) * (m + 1) + j + 1] + 1
            : Math.max(best[(i + 1) * (m + 1) + j], best[i * (m + 1) + j + 1]);
        }
      }
      for (let i = 0, j = 0; i < n && j < m;) {
        if (a[start + i] === b[start + j]) { same[0][start + i++] = 1; same[1][start + j++] = 1; }
        else if (best[(i + 1) * (m + 1) + j] >= best[i * (m + 1) + j + 1]) i++;
        else j++;
      }
    }
    return [[a, same[0]], [b, same[1]]];
  };
  const marked = ([parts, same], tag) => {
    const found = make("p", undefined, "answer");
    for (let i = 0; i < parts.length;) {
      let j = i;
      while (j < parts.length && same[j] === same[i]) j++;
      const run = parts.slice(i, j).join("");
      found.append(same[i] ? document.createTextNode(run) : make(tag, run));
      i = j;
    }
    return found;
  };
  const side = (name, answer, cut) => {
    const found = make("div");
    found.append(make("h4", name + (cut ? ", truncated" : "")), answer);
    return found;
  };

  const fill = (details, row, task, budget, method) => {
    const number = row[0];
    const question = number in task.asked ? text(task.asked[number]) : null;
    const asked = make("p", question ?? `The question's text is not at hand: ${task.why || "its file does not hold it"}.`, "asked");
    if (number in task.wanted) asked.append(make("small", `Right answer: ${text(task.wanted[number])}`));
    const sides = make("div", undefined, "sides");
    const [before, after] = [text(row[2]), text(row[5])];
    if (before === null) {
      sides.append(side(method, make("p", after, "answer"), row[7]));
    } else {
      const [gone, added] = difference(before, after);
      sides.append(side(budget.baseline, marked(gone, "del"), row[4]), side(method, marked(added, "ins"), row[7]));
    }
    details.append(asked, sides);
  };

  const browse = (form, budget) => {
    const list = form.nextElementSibling;
    const more = form.parentElement.querySelector(".more");
    const status = form.querySelector("[role=status]");
    const { method, task, direction } = form.elements;
    const add = (select, label, value) => select.append(Object.assign(make("option", label), { value }));
    budget.tasks.forEach((each, i) => Object.keys(each.rows).length && add(task, each.name, i));
    SHOW.forEach(([label], i) => add(direction, label, i));
    const methods = [...new Set(budget.tasks.flatMap((each) => Object.keys(each.rows)))];
    methods.sort((a, b) => a - b).forEach((i) => add(method, budget.methods[i], i));
    const count = (i) => budget.tasks.reduce((sum, each) => sum + (each.rows[i] ?? []).filter(SHOW[0][1]).length, 0);
    method.value = methods.reduce((most, i) => (count(i) > count(most) ? i : most), methods[0]);
    if (!count(method.value)) direction.value = budget.baseline && methods.length > 1 ? 3 : 4;
    let rows = [];
    const show = () => {
      const first = list.children.length;
      for (const row of rows.slice(first, first + AT_ONCE)) {
        const item = make("li");
        const details = make("details");
        const summary = make("summary");
        const outcome = make("span", OUTCOMES[row[1]], row[1] === LOST || row[1] === WRONG_ALONE ? "over" : row[1] === GAINED ? "within" : "");
        const results = row[2] === -1 ? text(row[6]) : `${text(row[3])} \u2192 ${text(row[6])}`;
        summary.append(make("span", `Question ${row[0]}`), outcome, make("span", results, "read"));
        details.append(summary);
        const [own, budgets, name] = [budget.tasks[task.value], budget, budget.methods[method.value]];
        details.addEventListener("toggle", () => details.children.length === 1 && fill(details, row, own, budgets, name));
        item.append(details);
        list.append(item);
      }
      more.hidden = list.children.length >= rows.length;
    };
    const choose = () => {
      rows = (budget.tasks[task.value]?.rows[method.value] ?? []).filter(SHOW[direction.value][1]);
      list.replaceChildren();
      show();
      list.hidden = !rows.length;
      status.textContent = `${rows.length.toLocaleString("en")} question${rows.length === 1 ? "" : "s"}`;
    };
    form.addEventListener("change", choose);
    form.addEventListener("submit", (event) => event.preventDefault());
    more.addEventListener("click", () => {
      const next = list.children.length;
      show();
      list.children[next]?.querySelector("summary").focus();
    });
    form.hidden = false;
    choose();
  };

  const forms = document.querySelectorAll(".browser");
  if (forms.length) {
    const budgets = read("rows");
    forms.forEach((form) => browse(form, budgets[form.dataset.budget]));
  }

  // A table that fits needs no stop of the Tab key.
  const stops = () => document.querySelectorAll(".scroll, .source").forEach((box) => {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0;
    else box.removeAttribute("tabindex");
  });
  stops();
  addEventListener("resize", stops);
  document.addEventListener("toggle", stops, true);

  // A line of the budget, or a printed page, is seen though it is folded.
  const reveal = () => {
    for (let box = document.getElementById(location.hash.slice(1)); box; box = box.parentElement) {
      if (box.tagName === "DETAILS") box.open = true;
    }
    document.getElementById(location.hash.slice(1))?.scrollIntoView();
  };
  addEventListener("hashchange", reveal);
  if (location.hash) reveal();
  let folded = [];
  addEventListener("beforeprint", () => {
    folded = [...document.querySelectorAll("details:not([open])")].filter((box) => !box.closest(".questions"));
    folded.forEach((box) => { box.open = true; });
  });
  addEventListener("afterprint", () => folded.forEach((box) => { box.open = false; }));
})();
