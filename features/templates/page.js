"use strict";
{
  // The theme: as the system has it, unless the reader wants it otherwise.
  const names = ["auto", "light", "dark"];
  const button = document.querySelector(".theme");
  const remembered = () => { try { return localStorage.getItem("mmfuse-theme"); } catch { return null; } };
  const remember = (name) => { try { localStorage.setItem("mmfuse-theme", name); } catch { /* a file may not */ } };
  const show = (name) => {
    if (name === "auto") delete document.documentElement.dataset.theme;
    else document.documentElement.dataset.theme = name;
    button.querySelector("span").textContent = name;
  };
  show(names.includes(remembered()) ? remembered() : "auto");
  button.hidden = false;
  button.addEventListener("click", () => {
    const now = document.documentElement.dataset.theme ?? "auto";
    const next = names[(names.indexOf(now) + 1) % names.length];
    show(next);
    remember(next);
  });
  for (const code of document.querySelectorAll(".command")) {
    const copy = code.querySelector("button");
    if (!copy || !navigator.clipboard) continue;
    copy.hidden = false;
    copy.addEventListener("click", async () => {
      await navigator.clipboard.writeText(code.querySelector("code").textContent);
      copy.textContent = "Copied";
      setTimeout(() => { copy.textContent = "Copy"; }, 1500);
    });
  }
  for (const box of document.querySelectorAll(".wide")) {
    if (box.scrollWidth > box.clientWidth) box.tabIndex = 0; // so that keys can scroll it
  }
}
