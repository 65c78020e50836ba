// Shows only the options of the chosen profile. Without this script all are shown, and the server takes
// those of the chosen profile. A disabled field is neither checked by the browser nor sent.
(function () {
  "use strict";
  var form = document.getElementById("gpupool-profiles");
  function show(element, wanted) {
    element.hidden = !wanted;
    element.querySelectorAll("select, input").forEach(function (field) {
      field.disabled = !wanted;
    });
  }
  function refresh() {
    form.querySelectorAll(".gpupool-profile").forEach(function (profile) {
      var options = profile.querySelector(".gpupool-options");
      if (!options) return;
      var chosen = profile.querySelector('input[type="radio"]').checked;
      show(options, chosen);
      options.querySelectorAll(".gpupool-option").forEach(function (option) {
        var typed = option.querySelector(".gpupool-typed");
        if (!typed) return;
        var wanted = option.querySelector("select").value === "unlisted-choice";
        show(typed, chosen && wanted);
        typed.querySelector("input").required = wanted;
      });
    });
  }
  form.querySelectorAll(".gpupool-without-script").forEach(function (hint) {
    hint.hidden = true;
  });
  form.addEventListener("change", refresh);
  window.addEventListener("pageshow", refresh); // a browser that goes back fills fields in after this script
  refresh();
})();
