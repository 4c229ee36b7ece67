// Everything the page says, in each language. Functions take what a sentence names.

const en = {
  askLabel: "Photo",
  answerLabel: "Answer",
  languages: "Language",
  drop: "Drop a photo here",
  paste: "or paste one, or choose below",
  choose: "Choose photos",
  camera: "Camera",
  take: "Take photo",
  cancel: "Cancel",
  unshown: "This browser cannot show the file; the service reads it all the same.",
  key: "This service asks for a key",
  keySend: "Use it",
  waiting: "The answer is one of these classes, or unknown.",
  more: (n) => `and ${n} more`,
  asking: "Asking …",
  unknown: "unknown",
  known: (p) => `Familiar: of the photos the model knows, ${p} look at least as strange.`,
  strange: (p, alpha, nearest) =>
    `Of the photos the model knows, only ${p} look this strange; below ${alpha} the answer is ` +
    `unknown. The nearest class is ${nearest}.`,
  objects: (n, unknown) =>
    (n === 0 ? "No object found" : n === 1 ? "1 object" : `${n} objects`) +
    (unknown ? `, ${unknown} unknown` : ""),
  objectsHint: "Choose an object to see where its score lies. Each class and size has a threshold of its own.",
  histogram: "How strange it is, among photos the model knows",
  histogramBoxes: "How strange they are, among objects the model knows",
  histogramText: (score, threshold) =>
    `Histogram of the scores of known photos. This score: ${score}; threshold: ${threshold}.`,
  familiar: "familiar",
  odd: "strange",
  threshold: "threshold",
  thresholdAll: "threshold, all classes",
  here: "this photo",
  hereBox: "this object",
  nearest: "Nearest known classes",
  similar: "Most similar training photos",
  trainingPhoto: (label) => `Training photo: ${label}`,
  samples: "Or try one of these",
  sample: (n) => `Sample ${n}`,
  pasted: "pasted photo",
  taken: "camera photo",
  history: "This session",
  saveJson: "Download as JSON",
  saveCsv: "Download as CSV",
  clear: "Clear",
  privacy: "Photos go to this service only. The list above is kept by this page until it is closed.",
  model: (task, n) => `${task === "detect" ? "Detector" : "Classifier"} of ${n} classes`,
  said: (name, label) => `${name}: ${label}`,
  noCamera: "No camera was found.",
  cameraDenied: "The camera may not be used; allow it in the browser's settings for this page.",
  problems: {
    network: () => "The service cannot be reached. Check the connection and try again.",
    wrong_key: () => "The key is missing or wrong.",
    upload_too_large: (l) => `The photo is larger than ${l.mebibytes} MiB. Choose a smaller one.`,
    too_many_pixels: (l) =>
      `The photo has more than ${l.megapixels} megapixels. Scale it down first.`,
    unsupported_photo: (l) => `This is not a photo that can be read. These can: ${l.formats}.`,
    unreadable_photo: () => "The photo is damaged and cannot be read. Try another copy of it.",
    queue_full: (l) => `Many photos are waiting just now. Try again in ${l.wait} s.`,
    busy: (l) => `The service is busy. Try again in ${l.wait} s.`,
    too_slow: () => "The service took too long to answer. Try again, or with a smaller photo.",
    upload_too_slow: () => "The upload took too long. Try a smaller photo or a better connection.",
    other: (l) => `The service could not answer (error ${l.status}). Try again later.`,
  },
};

const ja = {
  askLabel: "写真",
  answerLabel: "結果",
  languages: "言語",
  drop: "ここに写真をドロップ",
  paste: "貼り付け、または下のボタンから選択",
  choose: "写真を選ぶ",
  camera: "カメラ",
  take: "撮影",
  cancel: "キャンセル",
  unshown: "このブラウザーでは表示できない形式ですが、判定は行われます。",
  key: "このサービスにはキーが必要です",
  keySend: "使う",
  waiting: "次のクラスのどれか、または「未知」と答えます。",
  more: (n) => `ほか ${n} クラス`,
  asking: "判定中…",
  unknown: "未知",
  known: (p) => `見慣れた写真です。既知の写真の ${p} が、これと同じかそれ以上に変わって見えます。`,
  strange: (p, alpha, nearest) =>
    `これほど変わって見える写真は、既知の写真の ${p} しかありません。${alpha} を下回ると「未知」と答えます。` +
    `最も近いクラスは ${nearest} です。`,
  objects: (n, unknown) =>
    (n === 0 ? "物体なし" : `物体 ${n} 個`) + (unknown ? `、うち未知 ${unknown} 個` : ""),
  objectsHint: "物体を選ぶと、そのスコアの位置が表示されます。しきい値はクラスと大きさごとに異なります。",
  histogram: "既知の写真と比べた「変わり具合」",
  histogramBoxes: "既知の物体と比べた「変わり具合」",
  histogramText: (score, threshold) =>
    `既知の写真のスコアのヒストグラム。このスコア：${score}、しきい値：${threshold}。`,
  familiar: "見慣れた",
  odd: "変わった",
  threshold: "しきい値",
  thresholdAll: "しきい値（全クラス）",
  here: "この写真",
  hereBox: "この物体",
  nearest: "最も近い既知のクラス",
  similar: "最も似ている学習写真",
  trainingPhoto: (label) => `学習写真：${label}`,
  samples: "サンプルで試す",
  sample: (n) => `サンプル ${n}`,
  pasted: "貼り付けた写真",
  taken: "撮影した写真",
  history: "このセッション",
  saveJson: "JSON でダウンロード",
  saveCsv: "CSV でダウンロード",
  clear: "消去",
  privacy: "写真はこのサービスにだけ送られます。上の一覧は、このページを閉じるまでの間だけ残ります。",
  model: (task, n) => `${n} クラスの${task === "detect" ? "検出器" : "分類器"}`,
  said: (name, label) => `${name}：${label}`,
  noCamera: "カメラが見つかりません。",
  cameraDenied: "カメラを使用できません。ブラウザーの設定でこのページに許可してください。",
  problems: {
    network: () => "サービスに接続できません。接続を確認して、もう一度お試しください。",
    wrong_key: () => "キーがないか、正しくありません。",
    upload_too_large: (l) => `写真が ${l.mebibytes} MiB を超えています。小さい写真をお選びください。`,
    too_many_pixels: (l) => `写真が ${l.megapixels} メガピクセルを超えています。縮小してください。`,
    unsupported_photo: (l) => `読み込める写真ではありません。使える形式：${l.formats}。`,
    unreadable_photo: () => "写真が壊れていて読み込めません。別のコピーをお試しください。",
    queue_full: (l) => `ただいま混み合っています。${l.wait} 秒後にもう一度お試しください。`,
    busy: (l) => `サービスが混み合っています。${l.wait} 秒後にもう一度お試しください。`,
    too_slow: () => "時間内に判定できませんでした。もう一度、または小さい写真でお試しください。",
    upload_too_slow: () => "アップロードに時間がかかりすぎました。小さい写真でお試しください。",
    other: (l) => `サービスが答えられませんでした（エラー ${l.status}）。後でもう一度お試しください。`,
  },
};

const languages = { en, ja };
let current = navigator.language.toLowerCase().startsWith("ja") ? "ja" : "en";

export const language = () => current;
export const texts = () => languages[current];

/** A share in [0, 1] with two digits that count, "0.20 %". */
export function percent(share) {
  const digits = { style: "percent", maximumSignificantDigits: 2 };
  return share > 0.995 && share < 1
    ? `> ${new Intl.NumberFormat(current, digits).format(0.99)}`
    : new Intl.NumberFormat(current, digits).format(share);
}

export function number(value) {
  return new Intl.NumberFormat(current, { maximumSignificantDigits: 3 }).format(value);
}

/** Choose the language and write every text that the document marks. */
export function speak(name) {
  current = name;
  document.documentElement.lang = name;
  for (const element of document.querySelectorAll("[data-text]")) {
    element.textContent = texts()[element.dataset.text];
  }
  for (const element of document.querySelectorAll("[data-label]")) {
    element.setAttribute("aria-label", texts()[element.dataset.label]);
  }
}
