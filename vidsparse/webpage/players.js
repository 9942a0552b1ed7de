"use strict";

// Plays videos of equal length in step: one clock, one frame, one speed for all.
class Players {
  constructor(videos, fps, frames, changed) {
    Object.assign(this, { videos, fps, frames, changed, playing: false, speed: 1, loop: true, frame: 0 });
    for (const video of videos) {
      video.controls = false;
      for (const event of ["seeked", "loadeddata"]) video.addEventListener(event, () => this.changed());
    }
  }

  play() {
    if (this.frames < 2) return;
    if (this.frame >= this.frames - 1) this.seek(0);
    this.playing = true;
    for (const video of this.videos) {
      video.playbackRate = this.speed;
      video.play().catch(() => this.pause()); // refused by the browser, or interrupted
    }
    this.changed();
    requestAnimationFrame(() => this.tick());
  }

  pause() {
    if (!this.playing) return;
    this.playing = false;
    for (const video of this.videos) video.pause();
    this.seek(this.frame);
  }

  toggle() {
    if (this.playing) this.pause();
    else this.play();
  }

  // The middle of a frame is safe from rounding.
  seek(frame) {
    this.frame = Math.max(0, Math.min(this.frames - 1, frame));
    for (const video of this.videos) video.currentTime = (this.frame + 0.5) / this.fps;
    this.changed();
  }

  setSpeed(speed) {
    this.speed = speed;
    for (const video of this.videos) video.playbackRate = speed;
  }

  // The first video is the clock: one that lags or leads is sped up or slowed down, or moved if it is a frame away.
  tick() {
    if (!this.playing) return;
    const [clock, ...others] = this.videos;
    const now = clock.currentTime;
    this.frame = Math.max(0, Math.min(this.frames - 1, Math.floor(now * this.fps + 1e-3)));
    if (clock.ended || now >= this.frames / this.fps) {
      if (!this.loop) {
        this.frame = this.frames - 1;
        this.pause();
        return;
      }
      for (const video of this.videos) {
        video.currentTime = 0;
        if (video.paused) video.play().catch(() => this.pause());
      }
    } else {
      for (const video of others) {
        const ahead = (video.currentTime - now) * this.fps;
        if (Math.abs(ahead) > 0.9 && !video.seeking) video.currentTime = now;
        video.playbackRate = this.speed * (Math.abs(ahead) > 0.2 ? 1 - Math.max(-0.2, Math.min(0.2, ahead * 0.2)) : 1);
        if (video.paused && !video.ended) video.play().catch(() => this.pause());
      }
    }
    this.changed();
    requestAnimationFrame(() => this.tick());
  }
}

function fit(canvas, video) {
  if (canvas.width !== video.videoWidth) canvas.width = video.videoWidth;
  if (canvas.height !== video.videoHeight) canvas.height = video.videoHeight;
}

const drawable = (...videos) => videos.every((video) => video.readyState >= 2 && video.videoWidth);

// The left video up to a share of the width, the right one from there on.
function drawWipe(canvas, left, right, share) {
  if (!drawable(left, right)) return;
  fit(canvas, left);
  const { width, height } = canvas, context = canvas.getContext("2d"), edge = Math.round(share * width);
  context.drawImage(left, 0, 0, width, height);
  if (edge < width) {
    context.save();
    context.beginPath();
    context.rect(edge, 0, width - edge, height);
    context.clip();
    context.drawImage(right, 0, 0, width, height);
    context.restore();
  }
  const line = Math.max(1, width / (canvas.clientWidth || width));
  context.fillStyle = "#000";
  context.fillRect(edge - 1.5 * line, 0, 3 * line, height);
  context.fillStyle = "#fff";
  context.fillRect(edge - 0.5 * line, 0, line, height);
}

// The absolute difference of each colour, added to itself so many times.
const scratch = document.createElement("canvas");
function drawDifference(canvas, left, right, times) {
  if (!drawable(left, right)) return;
  fit(canvas, left);
  fit(scratch, left);
  const { width, height } = canvas, single = scratch.getContext("2d"), sum = canvas.getContext("2d");
  single.globalCompositeOperation = "copy";
  single.drawImage(left, 0, 0, width, height);
  single.globalCompositeOperation = "difference";
  single.drawImage(right, 0, 0, width, height);
  sum.globalCompositeOperation = "copy";
  sum.drawImage(scratch, 0, 0);
  sum.globalCompositeOperation = "lighter";
  for (let time = 1; time < times; time++) sum.drawImage(scratch, 0, 0);
}
