{
  // One clip each: a cursor over the picture that follows the sound, keys, and a pointer to seek.
  const STEP_S = 1;
  const pad = (n) => String(n).padStart(2, "0");

  // SMPTE ST 12-1, as features/clock.py counts: drop-frame skips labels, never frames.
  const timecode = (frame, fps, dropped) => {
    const nominal = Math.round(fps);
    frame %= 86400 * nominal - dropped * (1440 - 144);
    if (dropped) {
      const minute = 60 * nominal - dropped, ten = 10 * minute + dropped;
      const rest = frame % ten;
      frame += 9 * dropped * Math.floor(frame / ten);
      if (rest >= dropped) frame += dropped * Math.floor((rest - dropped) / minute);
    }
    const s = Math.floor(frame / nominal);
    return `${pad(Math.floor(s / 3600))}:${pad(Math.floor(s / 60) % 60)}:${pad(s % 60)}${dropped ? ";" : ":"}${pad(frame % nominal)}`;
  };

  const players = [];
  for (const clip of document.querySelectorAll(".clip:has(.score)")) {
    const audio = clip.querySelector("audio");
    const play = clip.querySelector(".play");
    const score = clip.querySelector(".score");
    const space = clip.querySelector(".cursor-space");
    const cursor = clip.querySelector(".cursor");
    const seconds = Number(clip.dataset.seconds);
    const [over, under] = (clip.dataset.fps ?? "25/1").split("/").map(Number);
    const fps = over / under;
    let at = 0;

    const label = (t) => clip.dataset.start === undefined ? ""
      : timecode(Math.floor((Number(clip.dataset.start) + t) * fps + 1e-6), fps, Number(clip.dataset.drop ?? 0));
    const show = (t) => {
      at = Math.min(Math.max(t, 0), seconds);
      cursor.style.left = `${(100 * at) / seconds}%`;
      clip.querySelector(".clock b").textContent = at.toFixed(3);
      const code = clip.querySelector(".clock i");
      if (code) code.textContent = label(at);
      score.setAttribute("aria-valuenow", at.toFixed(3));
      score.setAttribute("aria-valuetext", `${at.toFixed(3)} seconds ${label(at)}`.trim());
    };
    const seek = (t) => {
      show(t);
      if (audio) audio.currentTime = at;
    };
    const follow = () => {
      show(audio.currentTime);
      if (!audio.paused) requestAnimationFrame(follow);
    };
    const toggle = () => {
      if (!audio) return;
      if (!audio.paused) { audio.pause(); return; }
      for (const other of players) if (other !== audio) other.pause();
      if (audio.ended || at >= seconds - 0.01) seek(0);
      audio.play();
    };

    if (audio) {
      players.push(audio);
      audio.controls = false; // they are for readers without scripts
      play.hidden = false;
      play.addEventListener("click", toggle);
      audio.addEventListener("play", () => {
        clip.classList.add("playing");
        play.setAttribute("aria-label", play.getAttribute("aria-label").replace(/^Play/, "Pause"));
        follow();
      });
      for (const name of ["pause", "ended"]) audio.addEventListener(name, () => {
        clip.classList.remove("playing");
        play.setAttribute("aria-label", play.getAttribute("aria-label").replace(/^Pause/, "Play"));
        show(audio.currentTime);
      });
    }

    clip.addEventListener("keydown", (event) => {
      if (event.ctrlKey || event.metaKey || event.altKey) return;
      const step = event.shiftKey ? 1 / fps : STEP_S;
      const moves = {
        ArrowLeft: () => seek(at - step), ArrowRight: () => seek(at + step),
        ArrowDown: () => seek(at - step), ArrowUp: () => seek(at + step),
        PageDown: () => seek(at - 5), PageUp: () => seek(at + 5),
        Home: () => seek(0), End: () => seek(seconds),
      };
      if (event.key === " " && event.target !== play) moves[" "] = toggle;
      if (!moves[event.key]) return;
      moves[event.key]();
      event.preventDefault();
    });

    const second = (event) => {
      const box = space.getBoundingClientRect();
      return (seconds * (event.clientX - box.left)) / box.width;
    };
    score.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      seek(second(event));
      score.setPointerCapture(event.pointerId);
    });
    const roll = clip.querySelector(".roll");
    const names = ["C", "C♯", "D", "E♭", "E", "F", "F♯", "G", "A♭", "A", "B♭", "B"];
    const span = Number(clip.dataset.highest) + 1 - Number(clip.dataset.lowest);
    score.addEventListener("pointermove", (event) => {
      if (score.hasPointerCapture(event.pointerId)) seek(second(event));
      const box = roll.getBoundingClientRect();
      const up = (box.bottom - event.clientY) / box.height, t = second(event);
      const inside = up >= 0 && up <= 1 && t >= 0 && t <= seconds;
      const pitch = Number(clip.dataset.lowest) + span * up - 0.5;
      const near = Math.round(pitch);
      clip.querySelector(".under").textContent = !inside ? ""
        : `${t.toFixed(2)} s · ${(440 * 2 ** ((pitch - 69) / 12)).toFixed(0)} Hz · ${names[((near % 12) + 12) % 12]}${Math.floor(near / 12) - 1}`;
    });
    score.addEventListener("pointerleave", () => { clip.querySelector(".under").textContent = ""; });
    show(0);
  }
}
