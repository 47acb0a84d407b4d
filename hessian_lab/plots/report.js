document.documentElement.classList.add("js");
for (const part of document.querySelectorAll(".through")) {
  const slider = part.querySelector("input");
  if (!slider) continue;
  const frames = JSON.parse(part.querySelector("script").textContent);
  const show = () => {
    const frame = frames[slider.value];
    for (const path of part.querySelectorAll("[data-path]"))
      path.setAttribute("d", frame.paths[path.dataset.path]);
    for (const cell of part.querySelectorAll("[data-text]"))
      cell.textContent = frame.texts[cell.dataset.text];
    part.querySelector("[data-cursor]").setAttribute("transform", `translate(${frame.x} 0)`);
    slider.setAttribute("aria-valuetext", `step ${frame.texts.step}`);
  };
  slider.addEventListener("input", show);
  show();
}
