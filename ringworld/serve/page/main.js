// The page: what its parts are called when, and by what keys.

import { showAbout } from "./about.js";
import { findModel, findReports } from "./api.js";
import { isAnswering, onAnswer, stop } from "./asking.js";
import { clearComposer, listenToComposer, listenToDrops } from "./composer.js";
import { showList, startConversations } from "./conversations.js";
import { listenToDrawing, setDrawer, stopDrawing } from "./draw.js";
import { $, tell } from "./elements.js";
import { listenToFrames } from "./film.js";
import { listenToPlay, setPlayed, startPlaying } from "./play.js";
import { fillReports, listenToReports } from "./reports.js";
import { listenToSettings } from "./settings.js";
import { listenToTabs, openTab } from "./tabs.js";
import { askNew, forkFilm, setModel, showConversation, showGrown } from "./talk.js";

let model = null;

/** Fill a field with a sentence of the model's own, for the person to send. */
function use(id) {
  return (sentence) => {
    $(id).value = sentence;
    $(id).focus();
  };
}

async function connect() {
  try {
    model = await findModel();
    $("model").textContent = model.id;
    setModel(model);
    setDrawer(model);
    setPlayed(model);
    tell("");
    const { about } = await findReports();
    showAbout($("about-talk"), about, use("question"));
    showAbout($("about-draw"), about, use("wish"));
    showAbout($("about-model"), about, (sentence) => {
      openTab("talk");
      use("question")(sentence);
    });
  } catch (error) {
    tell(error.message, true);
  }
}

listenToSettings(connect);
listenToTabs({ play: startPlaying, reports: fillReports });
listenToComposer(askNew, () => model?.id);
listenToDrops(() => openTab("talk"));
listenToDrawing();
listenToPlay();
listenToFrames();
listenToReports();
onAnswer((conversation, grown) => {
  if (grown) return showGrown(conversation, grown);
  showConversation(conversation);
  showList();
  if (!isAnswering() && document.activeElement === document.body) $("question").focus();
});
$("fork-film").addEventListener("click", forkFilm);
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape" || document.querySelector("dialog[open]")) return;
  if ($("view-draw").hidden) stop();
  else stopDrawing();
});
const opened = (conversation) => {
  clearComposer();
  showConversation(conversation);
};
await startConversations(opened, isAnswering);
await connect();
